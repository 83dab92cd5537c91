/**
 * Geometry of the block tree over an image. Engine-free: blocks in, rectangles in screen pixels out.
 * x right, y down; block coordinates are pixels of the full image.
 */

import type { Block, BlockTree } from "./types";

/** Where the image lies on the canvas: screen = origin + scale * image, in canvas pixels. */
export interface View {
  x: number;
  y: number;
  scale: number;
  /** Size of the canvas. */
  width: number;
  height: number;
}

export interface LevelBlocks {
  level: number;
  /** Side of this level's blocks in image pixels (the largest, where they differ). */
  side: number;
  /** x, y, side of each block, one after the other. */
  corners: Float64Array;
  count: number;
}

/** Blocks of each level that is present, coarse to fine. */
export function groupByLevel(blocks: readonly Block[]): LevelBlocks[] {
  const groups = new Map<number, number[]>();
  for (const [x, y, side, level] of blocks) {
    const corners = groups.get(level) ?? [];
    groups.set(level, corners);
    corners.push(x, y, side);
  }
  return [...groups]
    .sort(([a], [b]) => a - b)
    .map(([level, corners]) => ({
      level,
      side: corners.reduce((side, value, i) => (i % 3 === 2 ? Math.max(side, value) : side), 0),
      corners: Float64Array.from(corners),
      count: corners.length / 3,
    }));
}

/** Calls draw with the edges of every block in view, snapped to whole canvas pixels. */
export function forEachVisible(
  group: LevelBlocks,
  tree: Pick<BlockTree, "width" | "height">,
  view: View,
  draw: (left: number, top: number, right: number, bottom: number) => void,
): void {
  const { corners } = group;
  for (let i = 0; i + 2 < corners.length; i += 3) {
    const x = corners[i] ?? 0;
    const y = corners[i + 1] ?? 0;
    const side = corners[i + 2] ?? 0;
    const left = Math.round(view.x + x * view.scale);
    const top = Math.round(view.y + y * view.scale);
    const right = Math.round(view.x + Math.min(x + side, tree.width) * view.scale);
    const bottom = Math.round(view.y + Math.min(y + side, tree.height) * view.scale);
    if (right >= 0 && bottom >= 0 && left <= view.width && top <= view.height) {
      draw(left, top, right, bottom);
    }
  }
}

/** Below this side (canvas pixels) lines would fill the block: it is tinted instead. */
export const SMALLEST_OUTLINED = 4;

export const isOutlined = (group: LevelBlocks, view: View): boolean =>
  group.side * view.scale >= SMALLEST_OUTLINED;

/** Position of a level between the coarsest and the finest present, 0 to 1. */
export function depthShare(level: number, groups: readonly { level: number }[]): number {
  const first = groups[0]?.level ?? level;
  const last = groups.at(-1)?.level ?? level;
  return last === first ? 0 : (level - first) / (last - first);
}

/**
 * Line width in whole canvas pixels, for lines that are sharp: 2.5 CSS pixels for the coarsest blocks
 * to 0.75 for the finest, less where blocks are small on the canvas.
 */
export function lineWidth(share: number, sideOnCanvas: number, pixelRatio: number): number {
  const widest = (2.5 - 1.75 * share) * pixelRatio;
  return Math.max(1, Math.round(Math.min(widest, sideOnCanvas / 14)));
}

/** Deep blue over violet and rose to gold, evenly spaced, coarse to fine. */
const RAMP = [
  [74, 163, 255],
  [139, 123, 255],
  [226, 105, 190],
  [255, 130, 105],
  [255, 207, 92],
] as const;

/** Colour of a level, red, green and blue from 0 to 255; share as from depthShare. */
export function levelRgb(share: number): [red: number, green: number, blue: number] {
  const position = Math.min(1, Math.max(0, share)) * (RAMP.length - 1);
  const index = Math.min(RAMP.length - 2, Math.floor(position));
  const from = RAMP[index] ?? RAMP[0];
  const to = RAMP[index + 1] ?? from;
  const mix = (channel: 0 | 1 | 2): number =>
    Math.round(from[channel] + (to[channel] - from[channel]) * (position - index));
  return [mix(0), mix(1), mix(2)];
}

/** Colour of a level as CSS. */
export const levelColour = (share: number, alpha = 1): string => `rgb(${levelRgb(share).join(" ")} / ${alpha})`;
