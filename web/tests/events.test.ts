import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import type { EventSourceLike, SceneEvent } from "../src/core/events";
import { addPoint, follow, live, reduce } from "../src/core/events";
import { makeEvent, makeProgress, makeScene } from "./scenes";

const progress = (step: number, psnr: number | null, version = 1): SceneEvent => ({
  type: "progress",
  progress: makeEvent(step, psnr, version),
});

describe("the curve", () => {
  it("grows by measured points only", () => {
    const curve = [makeProgress(1, 20), makeProgress(2, null), makeProgress(3, 25)].reduce(addPoint, []);
    expect(curve).toEqual([
      { step: 1, seconds: 0.1, quality: 20 },
      { step: 3, seconds: 0.3, quality: 25 },
    ]);
  });

  it("has one point for each measurement, not for each mention of it", () => {
    const curve = [makeProgress(1, 20), makeProgress(2, 20), makeProgress(9, 21)].reduce(addPoint, []);
    expect(curve.map((point) => point.step)).toEqual([1, 9]);
  });

  it("is the same after its history was sent twice", () => {
    const history = [1, 2, 3].map((step) => makeProgress(step, 20 + step));
    const once = history.reduce(addPoint, []);
    expect(history.reduce(addPoint, once)).toEqual(once);
  });

  it("starts over when the fit does", () => {
    const curve = [makeProgress(50, 30), makeProgress(1, 12)].reduce(addPoint, []);
    expect(curve.map((point) => point.step)).toEqual([1]);
  });
});

describe("reduce", () => {
  it("takes progress and version from the events", () => {
    const state = reduce(live(makeScene()), progress(10, 30, 4));
    expect(state.scene.version).toBe(4);
    expect(state.scene.progress).toEqual(makeProgress(10, 30));
    expect(state.scene.seconds_left).toBe(90);
    expect(state.scene).not.toHaveProperty("step");
  });

  it("never takes the version back", () => {
    const state = reduce(live(makeScene({ version: 5 })), progress(1, 20, 2));
    expect(state.scene.version).toBe(5);
  });

  it("leaves a scene at rest as it is, and still learns its curve", () => {
    const scene = makeScene({ status: "ready", version: 9, progress: makeProgress(100, 38) });
    const state = reduce(live(scene), progress(1, 20));
    expect(state.scene).toEqual(scene);
    expect(state.curve).toHaveLength(1);
  });

  it("keeps the curve when the scene itself is sent", () => {
    const before = reduce(live(makeScene()), progress(10, 30));
    const after = reduce(before, { type: "scene", scene: makeScene({ status: "ready" }) });
    expect(after.scene.status).toBe("ready");
    expect(after.curve).toEqual(before.curve);
  });
});

class FakeSource implements EventSourceLike {
  readyState = 1;
  closed = false;
  private readonly listeners = new Map<string, (event: MessageEvent<string>) => void>();

  constructor(readonly path: string) {}

  addEventListener(type: string, listener: (event: MessageEvent<string>) => void): void {
    this.listeners.set(type, listener);
  }

  close(): void {
    this.closed = true;
  }

  emit(type: string, data: unknown = null): void {
    this.listeners.get(type)?.(new MessageEvent(type, { data: JSON.stringify(data) }));
  }
}

describe("follow", () => {
  const sources: FakeSource[] = [];
  const events: SceneEvent[] = [];
  const start = (scene = makeScene()) =>
    follow(scene, (event) => events.push(event), (path) => {
      const source = new FakeSource(path);
      sources.push(source);
      return source;
    });
  const latest = (): FakeSource => {
    const source = sources.at(-1);
    if (source === undefined) throw new Error("nothing was connected");
    return source;
  };

  beforeEach(() => {
    vi.useFakeTimers();
    sources.length = 0;
    events.length = 0;
  });
  afterEach(() => vi.useRealTimers());

  it("asks the page's own origin", () => {
    start();
    expect(latest().path).toBe(`/scenes/${"0".repeat(26)}/events`);
  });

  it("hands on both kinds of events", () => {
    start();
    latest().emit("progress", makeEvent(1, 20));
    latest().emit("scene", makeScene({ status: "ready" }));
    expect(events.map((event) => event.type)).toEqual(["progress", "scene"]);
  });

  it("stays open when a stream of an active scene breaks, for the browser to go on", () => {
    start();
    latest().emit("error");
    expect(latest().closed).toBe(false);
  });

  it("closes when the stream of a scene at rest ends", () => {
    start();
    latest().emit("scene", makeScene({ status: "ready" }));
    latest().emit("error");
    expect(latest().closed).toBe(true);
    vi.runAllTimers();
    expect(sources).toHaveLength(1);
  });

  it("stays open as long as the scene is active", () => {
    start();
    latest().emit("progress", makeEvent(1, 20));
    vi.advanceTimersByTime(1e6);
    expect(latest().closed).toBe(false);
  });

  it("connects anew when the browser gave up on an active scene", () => {
    start();
    latest().readyState = 2;
    latest().emit("error");
    vi.runAllTimers();
    expect(sources).toHaveLength(2);
  });

  it("does not connect anew once stopped", () => {
    const stop = start();
    latest().readyState = 2;
    latest().emit("error");
    stop();
    vi.runAllTimers();
    expect(sources).toHaveLength(1);
    expect(latest().closed).toBe(true);
  });
});
