import { expect, it } from "vitest";
import { boxesByLevel, cubeEdges } from "../src/core/boxes";
import type { ShapeBlock } from "../src/core/types";

const BLOCKS: ShapeBlock[] = [
  [2, 0, 1, 0.5, 2],
  [0, 1, 0, 1, 1],
  [2.5, 0, 1, 0.5, 2],
];

it("are grouped coarse to fine, lose no block, and start from the origin", () => {
  const levels = boxesByLevel(BLOCKS, [1, 1, 1]);
  expect(levels.map(({ level, side, count }) => [level, side, count])).toEqual([
    [1, 1, 1],
    [2, 0.5, 2],
  ]);
  expect(levels.map(({ boxes }) => [...boxes])).toEqual([
    [-1, 0, -1, 1],
    [1, -1, 0, 0.5, 1.5, -1, 0, 0.5],
  ]);
});

it("keep neighbours together far away from zero", () => {
  const far = 1e7;
  const blocks: ShapeBlock[] = [0, 1, 2].map((i) => [far + i / 128, 0, 0, 1 / 128, 5]);
  const [level] = boxesByLevel(blocks, [far, 0, 0]);
  const boxes = level?.boxes ?? new Float32Array();
  for (const i of [0, 4]) expect((boxes[i] ?? NaN) + (boxes[i + 3] ?? NaN)).toBe(boxes[i + 4]);
});

it("nothing has no levels", () => expect(boxesByLevel([], [0, 0, 0])).toEqual([]));

it("a cube has twelve edges, each of them once, along one axis each", () => {
  const edges = cubeEdges();
  expect(edges).toHaveLength(12 * 2 * 3);
  const seen = new Set<string>();
  for (let i = 0; i < edges.length; i += 6) {
    const [from, to] = [edges.slice(i, i + 3), edges.slice(i + 3, i + 6)];
    expect(from.filter((value, axis) => value !== to[axis])).toHaveLength(1);
    seen.add([`${from}`, `${to}`].sort().join());
  }
  expect(seen.size).toBe(12);
});
