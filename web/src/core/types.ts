/** The JSON of the service, as its OpenAPI describes it. */

export type Status = "queued" | "fitting" | "ready" | "failed" | "cancelled";
export type Stage = "measuring" | "fitting" | "evaluating" | "done";
export type Preset = "draft" | "standard" | "fine";

export interface Progress {
  stage: Stage;
  step: number;
  steps: number;
  /** Seconds of fitting; null where the file does not tell. */
  seconds: number | null;
  /** Decibels at full size; null before the first measurement. */
  psnr: number | null;
  blocks: number;
  parameters: number;
  /** Estimated size of the .acorn file. */
  bytes: number;
}

export interface Links {
  self: string;
  events: string;
  file: string;
  original: string;
  tree: string;
  iiif: string;
  dzi: string;
  thumbnail: string;
}

export interface Metadata {
  title: string | null;
  description: string | null;
  attribution: string | null;
  rights: string | null;
}

export interface Scene extends Metadata {
  id: string;
  kind: "image";
  status: Status;
  error: { code: string; message: string } | null;
  width: number | null;
  height: number | null;
  channels: number | null;
  bit_depth: number | null;
  bytes_original: number | null;
  format_original: string | null;
  preset: string | null;
  encoder: string | null;
  created_at: string;
  updated_at: string;
  /** Snapshots published so far; 0 means there is nothing to look at yet. */
  version: number;
  progress: Progress | null;
  links: Links;
}

export interface ScenePage {
  items: Scene[];
  next: string | null;
  total: number;
}

export interface ProgressEvent extends Progress {
  id: string;
  version: number;
  status: Status;
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

/** A IIIF Image API description; only what the page itself reads is named. */
export interface ImageInfo {
  id: string;
  width: number;
  height: number;
  [key: string]: unknown;
}

export interface ErrorBody {
  error: { code: string; message: string; limit: string | null; value: number | null };
}
