/** Addresses within the page: `#/` and `#/scene/{id}`. */

export type Route = { page: "gallery" } | { page: "scene"; id: string };

export function parseRoute(hash: string): Route {
  const id = /^#\/scene\/([0-9a-z]+)$/.exec(hash)?.[1];
  return id === undefined ? { page: "gallery" } : { page: "scene", id };
}

export const galleryHash = "#/";
export const sceneHash = (id: string): string => `#/scene/${id}`;
