/** The JSON of the service, as its OpenAPI describes it. */

export type Status = "queued" | "fitting" | "paused" | "ready" | "failed" | "cancelled";
export type Stage = "measuring" | "fitting" | "evaluating" | "done";
export type Preset = "draft" | "standard" | "fine";
export type MeshFormat = "glb" | "ply" | "stl" | "obj";

export interface Progress {
  stage: Stage;
  step: number;
  steps: number;
  /** Seconds of fitting; null where the file does not tell. */
  seconds: number | null;
  /** Of an image: decibels at full size; null before the first measurement. */
  psnr: number | null;
  /** Of a shape: how much of the insides agrees, 0 to 1; null before the first measurement. */
  iou: number | null;
  blocks: number;
  parameters: number;
  /** Estimated size of the .acorn file. */
  bytes: number;
}

interface CommonLinks {
  self: string;
  events: string;
  file: string;
  original: string;
  tree: string;
  query: string;
  thumbnail: string;
}

export interface ImageLinks extends CommonLinks {
  region: string;
  iiif: string;
  dzi: string;
  mesh: null;
  tiles3d: null;
}

export interface ShapeLinks extends CommonLinks {
  region: null;
  iiif: null;
  dzi: null;
  mesh: string;
  tiles3d: string;
}

export interface Metadata {
  title: string | null;
  description: string | null;
  attribution: string | null;
  rights: string | null;
}

export type Corner = readonly [x: number, y: number, z: number];

/** A box along the axes: its lowest and its highest corner. */
export type Bounds = readonly [low: Corner, high: Corner];

export interface ShapeFacts {
  /** Of the mesh as uploaded; null for an .acorn file. */
  vertices: number | null;
  faces: number | null;
  colours: boolean;
  /** In the units of the mesh, like all positions. */
  bounds: Bounds;
  /** What was mended before the fit, one sentence each. */
  repairs: string[];
}

interface CommonScene extends Metadata {
  id: string;
  status: Status;
  error: { code: string; message: string } | null;
  bytes_original: number | null;
  format_original: string | null;
  preset: string | null;
  encoder: string | null;
  created_at: string;
  updated_at: string;
  /** Whether anybody may see it, without a key. */
  public: boolean;
  /** Snapshots published so far; 0 means there is nothing to look at yet. */
  version: number;
  progress: Progress | null;
  /** Of a scene that waits: 1 is the next. */
  queue_position: number | null;
  /** Of a fit that runs, as far as known. */
  seconds_left: number | null;
}

export interface ImageScene extends CommonScene {
  kind: "image";
  width: number | null;
  height: number | null;
  channels: number | null;
  bit_depth: number | null;
  shape: null;
  links: ImageLinks;
}

export interface ShapeScene extends CommonScene {
  kind: "shape";
  width: null;
  height: null;
  channels: null;
  bit_depth: null;
  shape: ShapeFacts;
  links: ShapeLinks;
}

/** Addresses that work without a key, until they expire. */
export interface SignedLinks {
  base: string;
  expires_at: string;
  links: ImageLinks | ShapeLinks;
}

export type Scene = ImageScene | ShapeScene;
export type Kind = Scene["kind"];

export interface ScenePage {
  items: Scene[];
  next: string | null;
  total: number;
}

export interface ProgressEvent extends Progress {
  id: string;
  version: number;
  status: Status;
  seconds_left: number | null;
}

/** x and y of the upper left corner and side in pixels of the full image, then the level. */
export type Block = readonly [x: number, y: number, side: number, level: number];

export interface BlockTree {
  version: number;
  width: number;
  height: number;
  levels: number;
  blocks: Block[];
}

/** Lowest corner and side of a block that holds surface, then its level. */
export type ShapeBlock = readonly [x: number, y: number, z: number, side: number, level: number];

export interface ShapeTree {
  version: number;
  bounds: Bounds;
  /** Side of a full-size voxel. */
  voxel: number;
  levels: number;
  blocks: ShapeBlock[];
}

/** A IIIF Image API description; only what the page itself reads is named. */
export interface ImageInfo {
  id: string;
  width: number;
  height: number;
  [key: string]: unknown;
}

export interface ErrorDetail {
  code: string;
  message: string;
  limit: string | null;
  value: number | null;
}

export interface ErrorBody {
  error: ErrorDetail;
}

/** How far an upload has come, and the scene or the error that came of it in the end. */
export interface UploadResult {
  id: string;
  status: "receiving" | "checking" | "done" | "failed";
  offset: number;
  length: number;
  scene_id: string | null;
  error: ErrorDetail | null;
}
