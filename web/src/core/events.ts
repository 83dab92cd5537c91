/** A scene followed live: the server's events folded into one plain value. */

import { sameOrigin } from "./api";
import { qualityOf } from "./quality";
import { isActive } from "./status";
import type { Progress, ProgressEvent, Scene } from "./types";

export interface CurvePoint {
  step: number;
  seconds: number;
  /** Decibels or IoU, as the kind of the scene has it. */
  quality: number;
}

export interface LiveScene {
  scene: Scene;
  /** Quality over the fit, ordered by step. */
  curve: readonly CurvePoint[];
}

export type SceneEvent =
  | { type: "scene"; scene: Scene }
  | { type: "progress"; progress: ProgressEvent };

export const live = (scene: Scene): LiveScene => ({ scene, curve: [] });

/** The curve with one more point. History may be sent again: what it repeats replaces what was there. */
export function addPoint(curve: readonly CurvePoint[], progress: Progress): readonly CurvePoint[] {
  const { step, seconds } = progress;
  const quality = qualityOf(progress);
  if (quality === null || seconds === null) return curve;
  const last = curve.at(-1);
  // Between two measurements the last one is repeated.
  if (last !== undefined && last.quality === quality && last.step <= step) return curve;
  const kept = last === undefined || last.step < step ? curve : curve.filter((p) => p.step < step);
  return [...kept, { step, seconds, quality }];
}

/** The scene after a progress event. Replayed history neither changes its status nor takes it back. */
function withProgress(scene: Scene, event: ProgressEvent): Scene {
  const { id: _id, version, status: _status, seconds_left, ...progress } = event;
  if (!isActive(scene.status)) return scene;
  return { ...scene, progress, seconds_left, version: Math.max(version, scene.version) };
}

export function reduce(state: LiveScene, event: SceneEvent): LiveScene {
  if (event.type === "scene") return { ...state, scene: event.scene };
  return {
    scene: withProgress(state.scene, event.progress),
    curve: addPoint(state.curve, event.progress),
  };
}

/** What EventSource is used for here; tests pass their own. */
export interface EventSourceLike {
  readonly readyState: number;
  addEventListener(type: string, listener: (event: MessageEvent<string>) => void): void;
  close(): void;
}

type Connect = (path: string) => EventSourceLike;
const connectEventSource: Connect = (path) => new EventSource(path);

const CLOSED = 2;
const RECONNECT_MS = 3000;

/**
 * Follows a scene until the returned function is called. The server ends the stream of a scene at
 * rest once its history has been told; EventSource would then open it again, and again. And it gives
 * up for good when a proxy answers with an error: then it is opened anew.
 */
export function follow(
  scene: Scene,
  onEvent: (event: SceneEvent) => void,
  connect: Connect = connectEventSource,
): () => void {
  let status = scene.status;
  let source: EventSourceLike;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const onScene = (message: MessageEvent<string>): void => {
    const received = JSON.parse(message.data) as Scene;
    status = received.status;
    onEvent({ type: "scene", scene: received });
  };
  const onProgress = (message: MessageEvent<string>): void => {
    onEvent({ type: "progress", progress: JSON.parse(message.data) as ProgressEvent });
  };
  const onError = (): void => {
    if (!isActive(status)) source.close();
    else if (source.readyState === CLOSED) timer = setTimeout(open, RECONNECT_MS);
  };
  const open = (): void => {
    source = connect(sameOrigin(scene.links.events));
    source.addEventListener("scene", onScene);
    source.addEventListener("progress", onProgress);
    source.addEventListener("error", onError);
  };
  open();
  return () => {
    clearTimeout(timer);
    source.close();
  };
}
