/** Geometry of the quality curve: data to positions in a box of given size. Engine-free. */

import type { CurvePoint } from "./events";
import type { Kind } from "./types";

export type ChartAxis = "seconds" | "step";

export interface Tick {
  value: number;
  at: number;
}

export interface Chart {
  /** SVG path of the curve; empty without points. */
  line: string;
  /** The same, closed along the lower edge. */
  area: string;
  xTicks: Tick[];
  yTicks: Tick[];
  /** Where a point of the curve stands. */
  place: (point: CurvePoint) => { x: number; y: number };
}

export interface Box {
  left: number;
  top: number;
  width: number;
  height: number;
}

export type Range = readonly [low: number, high: number];

/** The step of 1, 2 or 5 times a power of ten that cuts span into at most `count` parts. */
export function niceStep(span: number, count: number): number {
  const raw = span / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const factor = [1, 2, 5, 10].find((candidate) => candidate * power >= raw * (1 - 1e-9)) ?? 10;
  return factor * power;
}

/** Multiples of step within the range. */
export function ticksWithin([low, high]: Range, step: number): number[] {
  // The small margins keep a multiple that rounding put just outside.
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

/** Length of an axis when there is next to nothing on it. */
const SMALLEST_SPAN: Record<ChartAxis, number> = { seconds: 1, step: 10 };

/** Whole decibels around all values, at least 4 apart: a flat curve shall look flat. */
export function decibelRange(values: readonly number[]): Range {
  if (values.length === 0) return [20, 40];
  const low = Math.floor(Math.min(...values));
  const high = Math.ceil(Math.max(...values));
  return [low, Math.max(high, low + 4)];
}

/** From a round number below all values to 1, which is perfect; at least a fiftieth, as a flat curve shall look flat. */
export function shareRange(values: readonly number[]): Range {
  if (values.length === 0) return [0, 1];
  const missing = 1 - Math.min(0.98, ...values);
  const step = niceStep(missing, 4);
  const steps = Math.ceil(missing / step - 1e-9);
  return [Math.max(0, Number((1 - steps * step).toPrecision(12))), 1];
}

const RANGES: Record<Kind, (values: readonly number[]) => Range> = {
  image: decibelRange,
  shape: shareRange,
};

const round = (value: number): number => Math.round(value * 100) / 100;

const ticks = (range: Range, count: number, place: (value: number) => number): Tick[] =>
  ticksWithin(range, niceStep(range[1] - range[0], count)).map((value) => ({ value, at: place(value) }));

/** Lays out the curve of an image's or a shape's quality in the box; x starts at 0. */
export function layoutChart(points: readonly CurvePoint[], kind: Kind, axis: ChartAxis, box: Box): Chart {
  const bottom = box.top + box.height;
  const xRange: Range = [0, Math.max(points.at(-1)?.[axis] ?? 0, SMALLEST_SPAN[axis])];
  const yRange = RANGES[kind](points.map((point) => point.quality));
  const x = (value: number) => round(box.left + (value / xRange[1]) * box.width);
  const y = (value: number) =>
    round(bottom - ((value - yRange[0]) / (yRange[1] - yRange[0])) * box.height);
  const place = (point: CurvePoint) => ({ x: x(point[axis]), y: y(point.quality) });
  const placed = points.map(place);
  const line = placed.length === 0 ? "" : `M${placed.map((at) => `${at.x},${at.y}`).join("L")}`;
  const area = line && `${line}L${placed.at(-1)?.x},${bottom}L${placed[0]?.x},${bottom}Z`;
  return { line, area, xTicks: ticks(xRange, 5, x), yTicks: ticks(yRange, 4, y), place };
}

/** The point whose position on the axis is nearest to a share (0 to 1) of its length. */
export function nearestPoint(
  points: readonly CurvePoint[],
  axis: ChartAxis,
  share: number,
): CurvePoint | null {
  const target = share * (points.at(-1)?.[axis] ?? 0);
  const distance = (point: CurvePoint) => Math.abs(point[axis] - target);
  return points.reduce<CurvePoint | null>(
    (best, point) => (best === null || distance(point) < distance(best) ? point : best),
    null,
  );
}
