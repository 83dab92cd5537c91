/** Values for tests. */

import type { Progress, ProgressEvent, Scene, Status } from "../src/core/types";

export function makeScene(changes: Partial<Scene> = {}): Scene {
  const id = changes.id ?? "0".repeat(26);
  return {
    id,
    kind: "image",
    status: "fitting",
    error: null,
    title: "Pluto",
    description: null,
    attribution: null,
    rights: null,
    width: 640,
    height: 480,
    channels: 3,
    bit_depth: 8,
    bytes_original: 1000,
    format_original: "png",
    preset: "standard",
    encoder: "grid",
    created_at: "2026-01-01T00:00:00Z",
    updated_at: "2026-01-01T00:00:00Z",
    version: 1,
    progress: null,
    links: {
      self: `/scenes/${id}`,
      events: `http://inner:8000/scenes/${id}/events`,
      file: `/scenes/${id}/file`,
      original: `/scenes/${id}/original`,
      tree: `/scenes/${id}/tree`,
      iiif: `/iiif/${id}/info.json`,
      dzi: `/dzi/${id}.dzi`,
      thumbnail: `/iiif/${id}/full/^!400,400/0/default.jpg`,
    },
    ...changes,
  };
}

export function makeProgress(step: number, psnr: number | null): Progress {
  return {
    stage: "fitting",
    step,
    steps: 100,
    seconds: step / 10,
    psnr,
    blocks: 16,
    parameters: 1000,
    bytes: 2000,
  };
}

export function makeEvent(step: number, psnr: number | null, version = 1): ProgressEvent {
  const status: Status = "fitting";
  return { id: "0".repeat(26), version, status, ...makeProgress(step, psnr) };
}
