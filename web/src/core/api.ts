/** Calls to the service. Every failure is an ApiError that carries the service's own words. */

import { isVisible } from "./status";
import type {
  BlockTree,
  ErrorBody,
  ImageInfo,
  ImageScene,
  MeshFormat,
  Metadata,
  Scene,
  ScenePage,
  ShapeScene,
  ShapeTree,
  SignedLinks,
  UploadResult,
} from "./types";

export class ApiError extends Error {
  constructor(
    message: string,
    readonly code: string,
    readonly status: number,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

export const UNREACHABLE = "The server cannot be reached.";
const PAGE_SIZE = 48;

function isErrorBody(value: unknown): value is ErrorBody {
  if (typeof value !== "object" || value === null || !("error" in value)) return false;
  const error = value.error;
  return typeof error === "object" && error !== null && "message" in error && "code" in error;
}

/** The error that a response with this status and text stands for. */
export function errorFrom(status: number, text: string): ApiError {
  try {
    const body: unknown = JSON.parse(text);
    if (isErrorBody(body)) return new ApiError(body.error.message, body.error.code, status);
  } catch {
    // Not JSON: a proxy answered, not the service.
  }
  return new ApiError(`The server answered with status ${status}.`, "error", status);
}

/** The words to show for anything that was thrown. */
export function messageOf(reason: unknown): string {
  return reason instanceof Error ? reason.message : String(reason);
}

/** Keeps path and query of a link, so that the page asks its own origin also behind a proxy. */
export function sameOrigin(link: string): string {
  const url = new URL(link, "http://origin.invalid");
  return url.pathname + url.search;
}

/** A link that changes with the version, so that a cached older picture is not shown. */
export function versioned(link: string, version: number): string {
  const path = sameOrigin(link);
  return `${path}${path.includes("?") ? "&" : "?"}v=${version}`;
}

const UNKNOWN = 401;
const unknownListeners = new Set<() => void>();

/** Calls back when the server answers that it needs a key, or a newer one; returns what stops that. */
export function onUnknown(listener: () => void): () => void {
  unknownListeners.add(listener);
  return () => unknownListeners.delete(listener);
}

const BUSY = 503;
const BUSY_PAUSE_MS = 1000;

/** A busy server, or a scene that changes at this moment, asks readers to come again. */
export async function send(path: string, init: RequestInit = {}, tries = 3): Promise<Response> {
  const response = await fetch(path, init).catch((reason: unknown) => {
    if (init.signal?.aborted) throw reason;
    throw new ApiError(UNREACHABLE, "unreachable", 0);
  });
  if (response.status === BUSY && init.method === undefined && tries > 1) {
    await new Promise((resolve) => setTimeout(resolve, BUSY_PAUSE_MS));
    return send(path, init, tries - 1);
  }
  if (response.status === UNKNOWN) unknownListeners.forEach((listener) => listener());
  if (!response.ok) throw errorFrom(response.status, await response.text());
  return response;
}

/** What a call answers, read as JSON. */
export async function json<T>(path: string, init?: RequestInit): Promise<T> {
  return (await (await send(path, init)).json()) as T;
}

const scenePath = (id: string): string => `/scenes/${encodeURIComponent(id)}`;

export function listScenes(cursor: string | null = null): Promise<ScenePage> {
  const query = new URLSearchParams({ limit: String(PAGE_SIZE) });
  if (cursor !== null) query.set("cursor", cursor);
  return json(`/scenes?${query}`);
}

export const getScene = (id: string): Promise<Scene> => json(scenePath(id));

export const getTree = (scene: ImageScene): Promise<BlockTree> =>
  json(versioned(scene.links.tree, scene.version));

export const getShapeTree = (scene: ShapeScene): Promise<ShapeTree> =>
  json(versioned(scene.links.tree, scene.version));

/** Where the tileset of the scene's newest version is; null while there is none. */
export const tilesetOf = (scene: ShapeScene): string | null =>
  isVisible(scene) ? versioned(scene.links.tiles3d, scene.version) : null;

/** Where a mesh of so many cells along the longest side of the shape is. */
export const meshPath = (scene: ShapeScene, resolution: number, format: MeshFormat): string =>
  `${sameOrigin(scene.links.mesh)}?${new URLSearchParams({ resolution: String(resolution), format })}`;

/** A mesh, once it has been made; ends early, with an AbortError, when the signal says so. */
export async function getMesh(
  scene: ShapeScene,
  resolution: number,
  format: MeshFormat,
  signal: AbortSignal,
): Promise<Blob> {
  return (await send(meshPath(scene, resolution, format), { signal })).blob();
}

/** An answer as it is, but a busy server is asked again a few times. For libraries that do their own asking. */
export async function patientFetch(path: string, init: RequestInit, tries = 8): Promise<Response> {
  for (let left = tries; ; left--) {
    const response = await fetch(path, init);
    if (response.status !== BUSY || left <= 1 || init.signal?.aborted) return response;
    await new Promise((resolve) => setTimeout(resolve, BUSY_PAUSE_MS));
  }
}

/** The image's IIIF description, its id moved to the page's own origin. */
export async function getImageInfo(scene: ImageScene): Promise<ImageInfo> {
  const path = versioned(scene.links.iiif, scene.version);
  const info = await json<ImageInfo>(path);
  return { ...info, id: new URL(path, location.href).href.replace(/\/info\.json.*$/, "") };
}

/** How far an upload has come, and what came of it. */
export const getUpload = (path: string, signal: AbortSignal): Promise<UploadResult> =>
  json(path, { signal });

export function editScene(id: string, changes: Partial<Metadata>): Promise<Scene> {
  return json(scenePath(id), {
    method: "PATCH",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(changes),
  });
}

export const setPublic = (id: string, isPublic: boolean): Promise<Scene> =>
  json(scenePath(id), {
    method: "PATCH",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ public: isPublic }),
  });

/** Addresses of a scene that work without a key, for a day. */
export const makeLinks = (id: string): Promise<SignedLinks> =>
  json(`${scenePath(id)}/links`, { method: "POST" });

export async function cancelScene(id: string): Promise<void> {
  await send(`${scenePath(id)}/cancel`, { method: "POST" });
}

export async function pauseScene(id: string): Promise<void> {
  await send(`${scenePath(id)}/pause`, { method: "POST" });
}

export async function resumeScene(id: string): Promise<void> {
  await send(`${scenePath(id)}/resume`, { method: "POST" });
}

export async function retryScene(id: string): Promise<void> {
  await send(`${scenePath(id)}/retry`, { method: "POST" });
}

export async function deleteScene(id: string): Promise<void> {
  await send(scenePath(id), { method: "DELETE" });
}

/** A file's name without its folder and extension: the first title of its scene. */
export function titleFromFileName(name: string): string {
  return name.replace(/^.*[/\\]/, "").replace(/(?<=.)\.[^.]*$/, "");
}
