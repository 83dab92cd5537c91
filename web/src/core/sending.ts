/** Sends files by the tus protocol: after a broken connection or a reload of the page, an upload goes on. */

import type { DetailedError } from "tus-js-client";
import { ApiError, errorFrom, getScene, getUpload, titleFromFileName, UNREACHABLE } from "./api";
import type { Preset, Scene } from "./types";

const RETRY_MS = [0, 1000, 3000, 5000, 10_000, 20_000, 30_000];
const LOOK_MS = 1000;
const FAILED = 422;

/** The error that the library's own stands for: the service's words, if it has said any. */
export function errorOf(reason: Error | DetailedError): ApiError {
  const response = "originalResponse" in reason ? reason.originalResponse : null;
  if (response) return errorFrom(response.getStatus(), response.getBody());
  return new ApiError(UNREACHABLE, "unreachable", 0);
}

/** The scene that comes of an upload whose last byte has arrived; a server that is away is waited for. */
export async function outcome(path: string, signal: AbortSignal, patience = 60): Promise<Scene> {
  for (let left = patience; ; ) {
    try {
      const { scene_id, error } = await getUpload(path, signal);
      if (scene_id !== null) return await getScene(scene_id);
      if (error !== null) throw new ApiError(error.message, error.code, FAILED);
    } catch (reason) {
      const away = reason instanceof ApiError && reason.status === 0;
      if (!away || --left <= 0) throw reason;
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

/** The same file with the same choice is the same upload, also after the page was loaded again. */
const fingerprint = (file: File, preset: Preset): string =>
  ["acorn", preset, file.name, file.size, file.lastModified].join("/");

async function send(
  file: File,
  preset: Preset,
  onProgress: (share: number) => void,
  signal: AbortSignal,
): Promise<Scene> {
  const { Upload } = await import("tus-js-client");
  return new Promise((resolve, reject) => {
    const upload = new Upload(file, {
      endpoint: new URL("/uploads", location.href).href,
      metadata: { title: titleFromFileName(file.name), preset },
      retryDelays: RETRY_MS,
      fingerprint: async () => fingerprint(file, preset),
      removeFingerprintOnSuccess: true,
      onProgress: (sent, all) => onProgress(all ? sent / all : 0),
      onError: (reason) => reject(errorOf(reason)),
      onSuccess: () => outcome(upload.url ?? "", signal).then(resolve, reject),
    });
    signal.addEventListener("abort", () => {
      // What has arrived is removed; if that fails, the service does so in time.
      upload.abort(true).catch(() => {});
      reject(new ApiError("The upload was stopped.", "aborted", 0));
    });
    upload.findPreviousUploads().then(([previous]) => {
      if (signal.aborted) return;
      if (previous !== undefined) upload.resumeFromPreviousUpload(previous);
      upload.start();
    }, reject);
  });
}

/** Uploads a file as a new scene; onProgress gets the share sent, 0 to 1. */
export function uploadScene(
  file: File,
  preset: Preset,
  onProgress: (share: number) => void,
): { done: Promise<Scene>; abort: () => void } {
  const stop = new AbortController();
  return { done: send(file, preset, onProgress, stop.signal), abort: () => stop.abort() };
}
