/** The core's values as component state. */

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { getScene, listScenes, messageOf } from "../core/api";
import type { LiveScene, SceneEvent } from "../core/events";
import { follow, live, reduce } from "../core/events";
import type { Gallery } from "../core/gallery";
import { appendPage, EMPTY_GALLERY, loadGallery, putScene, scenesToFollow } from "../core/gallery";
import type { Route } from "../core/route";
import { parseRoute } from "../core/route";
import { uploadScene } from "../core/sending";
import { isActive } from "../core/status";
import type { Scene } from "../core/types";
import type { Upload } from "../core/uploads";
import { UploadQueue } from "../core/uploads";

/** History comes as a burst of events; one drawing per interval is enough. */
const FLUSH_MS = 60;

export function useRoute(): Route {
  const [route, setRoute] = useState(() => parseRoute(location.hash));
  useEffect(() => {
    const onChange = () => setRoute(parseRoute(location.hash));
    addEventListener("hashchange", onChange);
    return () => removeEventListener("hashchange", onChange);
  }, []);
  return route;
}

/** Follows a scene and hands on its events in bursts. */
function followInBursts(scene: Scene, onEvents: (events: SceneEvent[]) => void): () => void {
  let burst: SceneEvent[] = [];
  let timer: ReturnType<typeof setTimeout> | undefined;
  const flush = () => {
    timer = undefined;
    onEvents(burst);
    burst = [];
  };
  const stop = follow(scene, (event) => {
    burst.push(event);
    timer ??= setTimeout(flush, FLUSH_MS);
  });
  return () => {
    clearTimeout(timer);
    stop();
  };
}

export interface SceneState {
  live: LiveScene | null;
  error: string | null;
  /** Shows a scene that the server just returned. */
  put: (scene: Scene) => void;
  /** Asks the server anew, and follows the scene again. */
  reload: () => void;
}

export function useScene(id: string): SceneState {
  const [state, setState] = useState<LiveScene | null>(null);
  const [error, setError] = useState<string | null>(null);
  const [generation, setGeneration] = useState(0);
  useEffect(() => {
    let stop: (() => void) | null = null;
    let left = false;
    const start = (scene: Scene) => {
      if (left) return;
      setState(live(scene));
      setError(null);
      stop = followInBursts(scene, (events) =>
        setState((current) => (current === null ? null : events.reduce(reduce, current))),
      );
    };
    getScene(id).then(start, (reason: unknown) => setError(messageOf(reason)));
    return () => {
      left = true;
      stop?.();
    };
  }, [id, generation]);
  const put = useCallback((scene: Scene) => {
    setState((current) => (current === null ? live(scene) : { ...current, scene }));
  }, []);
  const reload = useCallback(() => setGeneration((value) => value + 1), []);
  return { live: state, error, put, reload };
}

export interface GalleryState {
  /** null until the first answer. */
  gallery: Gallery | null;
  error: string | null;
  refresh: () => void;
  more: () => void;
  put: (scene: Scene) => void;
}

/** The gallery as `who` sees it; kept live while it is shown. */
export function useGallery(shownNow: boolean, who: string | null): GalleryState {
  const [gallery, setGallery] = useState<Gallery | null>(null);
  const [error, setError] = useState<string | null>(null);
  const fail = useCallback((reason: unknown) => setError(messageOf(reason)), []);
  const shown = useRef(0);
  shown.current = gallery?.scenes.length ?? 0;
  const refresh = useCallback(() => {
    loadGallery(shown.current, listScenes).then((loaded) => {
      setGallery(loaded);
      setError(null);
    }, fail);
  }, [fail]);
  const next = gallery?.next ?? null;
  const more = useCallback(() => {
    listScenes(next).then((page) => setGallery((known) => appendPage(known ?? EMPTY_GALLERY, page)), fail);
  }, [next, fail]);
  const put = useCallback((scene: Scene) => {
    setGallery((known) => putScene(known ?? EMPTY_GALLERY, scene));
  }, []);
  useEffect(() => {
    if (!shownNow) return;
    refresh();
    addEventListener("focus", refresh);
    return () => removeEventListener("focus", refresh);
  }, [shownNow, refresh, who]);
  useFollowed(shownNow ? gallery : null, setGallery, refresh);
  return { gallery, error, refresh, more, put };
}

/** Keeps the active scenes of the gallery live. */
function useFollowed(
  gallery: Gallery | null,
  setGallery: (change: (known: Gallery | null) => Gallery | null) => void,
  refresh: () => void,
): void {
  const scenes = scenesToFollow(gallery?.scenes ?? []);
  const key = scenes.map((scene) => scene.id).join();
  useEffect(() => {
    const stops = scenes.map((first) => {
      let state = live(first);
      return followInBursts(first, (events) => {
        state = events.reduce(reduce, state);
        const { scene } = state;
        setGallery((known) => known && putScene(known, scene));
        // The next in the queue has begun, or will at once.
        if (!isActive(scene.status)) refresh();
      });
    });
    return () => stops.forEach((stop) => stop());
  }, [key]);
}

export interface UploadState {
  uploads: readonly Upload[];
  queue: UploadQueue;
}

/** Uploads that outlive the view they were started from. */
export function useUploads(onScene: (scene: Scene, together: number) => void): UploadState {
  const [uploads, setUploads] = useState<readonly Upload[]>([]);
  const latest = useRef(onScene);
  latest.current = onScene;
  const [queue] = useState(
    () => new UploadQueue(uploadScene, setUploads, (scene, together) => latest.current(scene, together)),
  );
  return { uploads, queue };
}
