/** What may be done with a scene in each status; the server's life cycle decides, this follows. */

import { formatRoughly } from "./format";
import type { Kind, Scene, Stage, Status } from "./types";

const ACTIVE: ReadonlySet<Status> = new Set<Status>(["queued", "fitting", "paused"]);
const PAUSABLE: ReadonlySet<Status> = new Set<Status>(["queued", "fitting"]);
const RETRYABLE: ReadonlySet<Status> = new Set<Status>(["failed", "cancelled"]);

const STATUS_LABELS: Record<Status, string> = {
  queued: "Waiting",
  fitting: "Fitting",
  paused: "Paused",
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

/** Whether something happens, or will, before the scene is at rest. */
export const isActive = (status: Status): boolean => ACTIVE.has(status);
export const canCancel = isActive;
export const canPause = (status: Status): boolean => PAUSABLE.has(status);
export const canResume = (status: Status): boolean => status === "paused";
export const canRetry = (status: Status): boolean => RETRYABLE.has(status);
export const isVisible = (scene: Scene): boolean => scene.version > 0;

/** What a scene is called on screen. */
export function titleOf(scene: Scene): string {
  return scene.title?.trim() || "Untitled";
}

/** One or two words on where the scene stands. */
export function statusLabel(scene: Scene): string {
  if (scene.status === "queued" && scene.queue_position !== null) {
    return scene.queue_position === 1 ? "Waiting, next in line" : `Waiting, number ${scene.queue_position} in line`;
  }
  const stage = scene.progress?.stage;
  if (scene.status !== "fitting" || !stage) return STATUS_LABELS[scene.status];
  const label = STAGE_LABELS[stage];
  return typeof label === "string" ? label : label[scene.kind];
}

/** How long the fit still takes, where that is known. */
export function timeLeft(scene: Scene): string | null {
  if (scene.status !== "fitting" || scene.seconds_left === null) return null;
  return `about ${formatRoughly(scene.seconds_left)} left`;
}

/** Share of the steps done, 0 to 1. */
export function fractionDone(scene: Scene): number {
  const progress = scene.progress;
  if (scene.status === "ready") return 1;
  return progress && progress.steps > 0 ? Math.min(1, progress.step / progress.steps) : 0;
}
