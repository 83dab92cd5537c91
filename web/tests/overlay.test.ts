import { describe, expect, it } from "vitest";
import type { View } from "../src/core/overlay";
import {
  depthShare,
  forEachVisible,
  groupByLevel,
  isOutlined,
  levelColour,
  lineWidth,
} from "../src/core/overlay";
import type { Block } from "../src/core/types";

const TREE = { width: 100, height: 60 };
const BLOCKS: Block[] = [
  [64, 0, 32, 2],
  [0, 0, 64, 1],
  [96, 0, 32, 2],
];
const VIEW: View = { x: 10, y: 20, scale: 2, width: 400, height: 300 };

function edges(blocks: Block[], view: View): number[][] {
  const found: number[][] = [];
  for (const group of groupByLevel(blocks)) {
    forEachVisible(group, TREE, view, (...edge) => found.push(edge));
  }
  return found;
}

describe("levels", () => {
  it("are grouped coarse to fine and lose no block", () => {
    const groups = groupByLevel(BLOCKS);
    expect(groups.map(({ level, side, count }) => [level, side, count])).toEqual([
      [1, 64, 1],
      [2, 32, 2],
    ]);
  });

  it("have shares from 0 to 1", () => {
    const groups = groupByLevel([...BLOCKS, [0, 0, 8, 4]]);
    expect([1, 2, 4].map((level) => depthShare(level, groups))).toEqual([0, 1 / 3, 1]);
    expect(depthShare(3, groupByLevel([[0, 0, 8, 3]]))).toBe(0);
  });
});

describe("edges", () => {
  it("follow the view and end with the image", () => {
    expect(edges(BLOCKS, VIEW)).toEqual([
      [10, 20, 138, 140],
      [138, 20, 202, 84],
      [202, 20, 210, 84],
    ]);
  });

  it("of neighbours meet on the same pixel at any scale", () => {
    for (const scale of [0.013, 0.37, 1.7, 13.3]) {
      const [, left, right] = edges(BLOCKS, { ...VIEW, scale, width: 1e5, height: 1e5 });
      expect(left?.[2]).toBe(right?.[0]);
    }
  });

  it("out of sight are left out", () => {
    expect(edges(BLOCKS, { ...VIEW, x: -150 })).toHaveLength(2);
    expect(edges(BLOCKS, { ...VIEW, y: 301 })).toEqual([]);
  });
});

it("blocks too small to outline are found by their side on screen", () => {
  const [coarse, fine] = groupByLevel(BLOCKS);
  const view = { ...VIEW, scale: 0.1 };
  expect(coarse && isOutlined(coarse, view)).toBe(true);
  expect(fine && isOutlined(fine, view)).toBe(false);
});

describe("style", () => {
  it("deeper lines are thinner, and never wider than their block bears", () => {
    expect(lineWidth(0, 1000, 2)).toBe(5);
    expect(lineWidth(1, 1000, 2)).toBe(2);
    expect(lineWidth(0, 28, 2)).toBe(2);
    expect(lineWidth(0, 1, 2)).toBe(1);
  });

  it("every level has its own colour", () => {
    const colours = [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1].map((share) => levelColour(share));
    expect(new Set(colours).size).toBe(colours.length);
    expect(levelColour(0)).toBe("rgb(74 163 255 / 1)");
    expect(levelColour(2)).toBe(levelColour(1));
  });
});
