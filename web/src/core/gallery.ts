/** The list of scenes as a plain value, and pure changes of it. */

import type { Scene, ScenePage } from "./types";

export interface Gallery {
  scenes: readonly Scene[];
  next: string | null;
  total: number;
}

/** Browsers allow six connections to a server; tiles and uploads need some of them. */
const FOLLOWED_AT_ONCE = 2;

/** The gallery with one more page; scenes seen before are replaced. */
export function appendPage(gallery: Gallery, page: ScenePage): Gallery {
  const fresh = new Set(page.items.map((scene) => scene.id));
  const kept = gallery.scenes.filter((scene) => !fresh.has(scene.id));
  return { scenes: [...kept, ...page.items], next: page.next, total: page.total };
}

export const EMPTY_GALLERY: Gallery = { scenes: [], next: null, total: 0 };

/** The first pages, until at least `count` scenes are there or the list ends. */
export async function loadGallery(
  count: number,
  list: (cursor: string | null) => Promise<ScenePage>,
): Promise<Gallery> {
  let gallery = appendPage(EMPTY_GALLERY, await list(null));
  while (gallery.next !== null && gallery.scenes.length < count) {
    gallery = appendPage(gallery, await list(gallery.next));
  }
  return gallery;
}

/** The gallery with this scene as it is now; a new one comes first. */
export function putScene(gallery: Gallery, scene: Scene): Gallery {
  if (gallery.scenes.some((known) => known.id === scene.id)) {
    const scenes = gallery.scenes.map((known) => (known.id === scene.id ? scene : known));
    return { ...gallery, scenes };
  }
  return { ...gallery, scenes: [scene, ...gallery.scenes], total: gallery.total + 1 };
}

/** The scenes to follow live: those being fitted, then those that have waited longest. */
export function scenesToFollow(scenes: readonly Scene[]): Scene[] {
  const fitting = scenes.filter((scene) => scene.status === "fitting");
  const waiting = scenes.filter((scene) => scene.status === "queued");
  return [...fitting, ...waiting.reverse()].slice(0, FOLLOWED_AT_ONCE);
}
