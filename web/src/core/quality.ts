/** How good a fit is, in the words for its kind: decibels for images, IoU for shapes. */

import type { Kind, Progress } from "./types";

interface Measure {
  /** What the curve is called. */
  heading: string;
  unit: string;
  /** What the unit means, in a sentence. */
  meaning: string;
  format: (quality: number) => string;
}

/** Three digits, four near the end; never rounded up, or a good fit would read as a perfect one. */
function formatIou(iou: number): string {
  const digits = iou < 0.99 ? 3 : 4;
  // The small margin keeps a value that binary fractions put just below its last digit.
  return (Math.floor(iou * 10 ** digits + 1e-6) / 10 ** digits).toFixed(digits);
}

export const MEASURES: Record<Kind, Measure> = {
  image: {
    heading: "Fidelity in dB",
    unit: "dB",
    meaning: "decibels of peak signal-to-noise ratio, against the original at full size",
    format: (psnr) => psnr.toFixed(1),
  },
  shape: {
    heading: "Fidelity as IoU",
    unit: "IoU",
    meaning: "intersection over union: the share of the insides of mesh and field, taken together, that both agree on",
    format: formatIou,
  },
};

/** The quality as last measured; null before the first measurement. */
export const qualityOf = (progress: Progress | null): number | null => progress?.psnr ?? progress?.iou ?? null;

/** A quality with its unit, as in `34.1 dB`. */
export const formatQuality = (kind: Kind, quality: number): string =>
  `${MEASURES[kind].format(quality)} ${MEASURES[kind].unit}`;
