/** Values for tests. */

import type { ImageScene, Progress, ProgressEvent, ShapeScene, Status } from "../src/core/types";

const commonLinks = (id: string) => ({
  self: `/scenes/${id}`,
  events: `http://inner:8000/scenes/${id}/events`,
  file: `/scenes/${id}/file`,
  original: `/scenes/${id}/original`,
  tree: `/scenes/${id}/tree`,
  query: `/scenes/${id}/query`,
});

export function makeScene(changes: Partial<ImageScene> = {}): ImageScene {
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
    public: false,
    version: 1,
    progress: null,
    queue_position: null,
    seconds_left: null,
    shape: null,
    links: {
      ...commonLinks(id),
      region: `/scenes/${id}/region`,
      iiif: `/iiif/${id}/info.json`,
      dzi: `/dzi/${id}.dzi`,
      mesh: null,
      tiles3d: null,
      thumbnail: `/iiif/${id}/full/^!400,400/0/default.jpg`,
    },
    ...changes,
  };
}

export function makeShape(changes: Partial<ShapeScene> = {}): ShapeScene {
  const id = changes.id ?? "0".repeat(26);
  return {
    ...makeScene({ id }),
    kind: "shape",
    title: "Spot",
    format_original: "obj",
    width: null,
    height: null,
    channels: null,
    bit_depth: null,
    shape: { vertices: 10, faces: 16, colours: false, bounds: [[0, 0, 0], [4, 2, 1]], repairs: [] },
    links: {
      ...commonLinks(id),
      region: null,
      iiif: null,
      dzi: null,
      mesh: `http://inner:8000/scenes/${id}/mesh`,
      tiles3d: `http://inner:8000/tiles3d/${id}/tileset.json`,
      thumbnail: `/scenes/${id}/thumbnail.webp`,
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
    iou: null,
    blocks: 16,
    parameters: 1000,
    bytes: 2000,
  };
}

export function makeEvent(step: number, psnr: number | null, version = 1): ProgressEvent {
  const status: Status = "fitting";
  return { id: "0".repeat(26), version, status, seconds_left: 100 - step, ...makeProgress(step, psnr) };
}
