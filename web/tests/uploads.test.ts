import { describe, expect, it } from "vitest";
import type { Scene } from "../src/core/types";
import type { Upload } from "../src/core/uploads";
import { UploadQueue } from "../src/core/uploads";
import { makeScene } from "./scenes";

interface Sent {
  name: string;
  onProgress: (share: number) => void;
  resolve: (scene: Scene) => void;
  reject: (reason: Error) => void;
}

function setUp() {
  const sent: Sent[] = [];
  const made: [Scene, number][] = [];
  let uploads: readonly Upload[] = [];
  const queue = new UploadQueue(
    (file, _preset, onProgress) => {
      let abort = () => {};
      const done = new Promise<Scene>((resolve, reject) => {
        sent.push({ name: file.name, onProgress, resolve, reject });
        abort = () => reject(new Error("stopped"));
      });
      return { done, abort };
    },
    (changed) => (uploads = changed),
    (scene, together) => made.push([scene, together]),
  );
  return { queue, sent, made, uploads: () => uploads };
}

const files = (...names: string[]): File[] => names.map((name) => new File(["x"], name));
const settled = () => new Promise<void>((resolve) => setTimeout(resolve));

describe("uploads", () => {
  it("go one after the other and leave the list when done", async () => {
    const { queue, sent, made, uploads } = setUp();
    queue.add(files("a", "b"), "draft");
    await settled();
    expect(sent.map(({ name }) => name)).toEqual(["a"]);
    sent[0]?.onProgress(0.5);
    expect(uploads().map(({ share }) => share)).toEqual([0.5, null]);
    sent[0]?.resolve(makeScene());
    await settled();
    expect(sent.map(({ name }) => name)).toEqual(["a", "b"]);
    expect(uploads().map(({ name }) => name)).toEqual(["b"]);
    expect(made).toEqual([[makeScene(), 2]]);
  });

  it("that fail keep the server's words, and the next goes on", async () => {
    const { queue, sent, uploads } = setUp();
    queue.add(files("a", "b"), "draft");
    await settled();
    sent[0]?.reject(new Error("Not an image."));
    await settled();
    expect(uploads()[0]?.error).toBe("Not an image.");
    expect(sent).toHaveLength(2);
  });

  it("that were taken off the list are not sent, or stopped", async () => {
    const { queue, sent, made, uploads } = setUp();
    queue.add(files("a", "b", "c"), "draft");
    await settled();
    const [a, b] = uploads();
    queue.dismiss(b?.key ?? -1);
    queue.dismiss(a?.key ?? -1);
    await settled();
    expect(sent.map(({ name }) => name)).toEqual(["a", "c"]);
    expect(uploads().map(({ name }) => name)).toEqual(["c"]);
    expect(made).toEqual([]);
  });
});
