import { describe, expect, it } from "vitest";
import { appendPage, EMPTY_GALLERY, loadGallery, putScene, scenesToFollow } from "../src/core/gallery";
import { makeScene } from "./scenes";

const ids = (scenes: readonly { id: string }[]): string => scenes.map((scene) => scene.id).join("");
const scenes = (text: string) => [...text].map((id) => makeScene({ id, status: "ready" }));

describe("the list", () => {
  it("grows by pages without doubles", () => {
    const first = appendPage(EMPTY_GALLERY, { items: scenes("ab"), next: "1", total: 3 });
    const both = appendPage(first, { items: scenes("bc"), next: null, total: 3 });
    expect(ids(both.scenes)).toBe("abc");
    expect(both.next).toBeNull();
  });

  it("is loaded as far as it was shown", async () => {
    const pages = ["ab", "cd", "ef"];
    const asked: (string | null)[] = [];
    const list = async (cursor: string | null) => {
      asked.push(cursor);
      const index = Number(cursor ?? 0);
      const next = index + 1 < pages.length ? String(index + 1) : null;
      return { items: scenes(pages[index] ?? ""), next, total: 6 };
    };
    expect(ids((await loadGallery(3, list)).scenes)).toBe("abcd");
    expect(asked).toEqual([null, "1"]);
    expect(ids((await loadGallery(99, list)).scenes)).toBe("abcdef");
  });

  it("takes a new scene first and a known one in its place", () => {
    const gallery = { scenes: scenes("ab"), next: null, total: 2 };
    expect(putScene(gallery, makeScene({ id: "c" }))).toMatchObject({ total: 3 });
    expect(ids(putScene(gallery, makeScene({ id: "c" })).scenes)).toBe("cab");
    const changed = putScene(gallery, makeScene({ id: "b", title: "New" }));
    expect(changed.scenes[1]?.title).toBe("New");
    expect(changed.total).toBe(2);
  });
});

it("follows what is being fitted, then what has waited longest, two at most", () => {
  const list = [
    makeScene({ id: "a", status: "queued" }),
    makeScene({ id: "b", status: "queued" }),
    makeScene({ id: "c", status: "fitting" }),
    makeScene({ id: "d", status: "ready" }),
  ];
  expect(ids(scenesToFollow(list))).toBe("cb");
  expect(scenesToFollow(scenes("xyz"))).toEqual([]);
});
