/** The blocks of a shape as boxes to draw, level by level. Renderer-free. */

import type { Corner, ShapeBlock } from "./types";

export interface LevelBoxes {
  level: number;
  /** Side of this level's blocks, in the units of the mesh (the largest, where they differ). */
  side: number;
  count: number;
  /** x, y, z of the lowest corner, relative to the origin, and side of each box, one after the other. */
  boxes: Float32Array<ArrayBuffer>;
}

/**
 * Boxes of each level that is present, coarse to fine. Relative to an origin near them, since single
 * precision is too coarse for a small mesh far away from zero.
 */
export function boxesByLevel(blocks: readonly ShapeBlock[], origin: Corner): LevelBoxes[] {
  const groups = new Map<number, number[]>();
  for (const [x, y, z, side, level] of blocks) {
    const boxes = groups.get(level) ?? [];
    groups.set(level, boxes);
    boxes.push(x - origin[0], y - origin[1], z - origin[2], side);
  }
  return [...groups]
    .sort(([a], [b]) => a - b)
    .map(([level, boxes]) => ({
      level,
      side: boxes.reduce((side, value, i) => (i % 4 === 3 ? Math.max(side, value) : side), 0),
      count: boxes.length / 4,
      boxes: Float32Array.from(boxes),
    }));
}

/** The 12 edges of the cube from 0 to 1 as pairs of corners: x, y, z of 24 points. */
export function cubeEdges(): Float32Array<ArrayBuffer> {
  const points: number[] = [];
  for (const axis of [0, 1, 2]) {
    for (const [u, v] of [[0, 0], [0, 1], [1, 0], [1, 1]] as const) {
      for (const end of [0, 1]) {
        const point = [0, 0, 0];
        point[axis] = end;
        point[(axis + 1) % 3] = u;
        point[(axis + 2) % 3] = v;
        points.push(...point);
      }
    }
  }
  return Float32Array.from(points);
}
