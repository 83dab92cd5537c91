/** What may be done with a scene in each status; the server's life cycle decides, this follows. */

import type { Kind, Scene, Stage, Status } from "./types";

const ACTIVE: ReadonlySet<Status> = new Set<Status>(["queued", "fitting"]);
const RETRYABLE: ReadonlySet<Status> = new Set<Status>(["failed", "cancelled"]);

const STATUS_LABELS: Record<Status, string> = {
  queued: "Waiting",
  fitting: "Fitting",
  ready: "Ready",
  failed: "Failed",
  cancelled: "Cancelled",
};

const STAGE_LABELS: Record<Stage, string | Record<Kind, string>> = {
  measuring: { image: "Measuring the image", shape: "Measuring the shape" },
  fitting: "Fitting",
  evaluating: "Evaluating",
  done: "Finishing",
};

export const isActive = (status: Status): boolean => ACTIVE.has(status);
export const canCancel = isActive;
export const canRetry = (status: Status): boolean => RETRYABLE.has(status);
export const isVisible = (scene: Scene): boolean => scene.version > 0;

/** What a scene is called on screen. */
export function titleOf(scene: Scene): string {
  return scene.title?.trim() || "Untitled";
}

/** One or two words on where the scene stands. */
export function statusLabel(scene: Scene): string {
  const stage = scene.progress?.stage;
  if (scene.status !== "fitting" || !stage) return STATUS_LABELS[scene.status];
  const label = STAGE_LABELS[stage];
  return typeof label === "string" ? label : label[scene.kind];
}

/** Share of the steps done, 0 to 1. */
export function fractionDone(scene: Scene): number {
  const progress = scene.progress;
  if (scene.status === "ready") return 1;
  return progress && progress.steps > 0 ? Math.min(1, progress.step / progress.steps) : 0;
}
