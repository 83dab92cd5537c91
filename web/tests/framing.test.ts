import { describe, expect, it } from "vitest";
import {
  clipPlanes,
  firstPosition,
  framingDistance,
  placedCorners,
  placementOf,
  turned,
  upright,
} from "../src/core/framing";
import type { Bounds, Corner } from "../src/core/types";

const BOUNDS: Bounds[] = [
  [[0, 0, 0], [1, 1, 1]],
  [[-3, 5, 1e6], [900, 6, 1e6 + 2]],
  [[0, 0, 0], [0.001, 0.0002, 0]],
];
const POINT: Bounds = [[2, 2, 2], [2, 2, 2]];

const length = (vector: Corner): number => Math.hypot(...vector);
const minus = (a: Corner, b: Corner): Corner => [a[0] - b[0], a[1] - b[1], a[2] - b[2]];
const dot = (a: Corner, b: Corner): number => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const unit = (a: Corner): Corner => [a[0] / length(a), a[1] / length(a), a[2] / length(a)];
const cross = (a: Corner, b: Corner): Corner => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];

/** How far out in the view a point is, seen from a position towards the middle: 1 is at its edge. */
function extent(point: Corner, position: Corner, fov: number, aspect: number): number {
  const back = unit(position);
  const right = unit(cross([0, 1, 0], back));
  const seen = minus(point, position);
  const depth = -dot(seen, back);
  const tall = Math.tan((fov * Math.PI) / 360) * depth;
  expect(depth).toBeGreaterThan(0);
  return Math.max(Math.abs(dot(seen, right)) / (tall * aspect), Math.abs(dot(seen, cross(back, right))) / tall);
}

describe("a placed shape", () => {
  it.each(BOUNDS)("touches the unit sphere with its corners: %j %j", (low, high) => {
    for (const up of ["y", "z"] as const) {
      const corners = placedCorners([low, high], placementOf([low, high]), up);
      expect(corners).toHaveLength(8);
      for (const corner of corners) expect(length(corner)).toBeCloseTo(1, 9);
    }
  });

  it("that is one point is in the middle", () => {
    for (const corner of placedCorners(POINT, placementOf(POINT), "y")) expect(length(corner)).toBe(0);
  });

  it("with z up is turned, not mirrored", () => {
    expect(upright([0, 0, 1], "z")).toEqual([0, 1, -0]);
    const [x, y, z] = ([[1, 0, 0], [0, 1, 0], [0, 0, 1]] as Corner[]).map((axis) => upright(axis, "z"));
    expect(x && y && z && dot(cross(x, y), z)).toBe(1);
  });
});

describe("the first view", () => {
  const cases = BOUNDS.flatMap((bounds) => [0.5, 1, 2.2].map((aspect) => ({ bounds, aspect })));

  it.each(cases)("holds the whole shape, and little else: $aspect", ({ bounds, aspect }) => {
    for (const up of ["y", "z"] as const) {
      const position = firstPosition(bounds, up, 40, aspect);
      const corners = placedCorners(bounds, placementOf(bounds), up);
      const widest = Math.max(...corners.map((corner) => extent(corner, position, 40, aspect)));
      expect(widest).toBeLessThan(1);
      expect(widest).toBeGreaterThan(0.9);
    }
  });

  it("is nearer through a narrower lens of a longer view", () => {
    const corners = placedCorners([[0, 0, 0], [1, 1, 1]], placementOf([[0, 0, 0], [1, 1, 1]]), "y");
    const at = (fov: number) => framingDistance(corners, [1, 1, 1], fov, 1);
    expect(at(20)).toBeGreaterThan(at(40));
    expect(framingDistance([], [1, 1, 1], 40, 1)).toBe(0);
  });
});

it("clip planes hold a sphere at any distance, and never lose their order", () => {
  for (const distance of [0, 0.5, 4, 4.5, 100]) {
    const { near, far } = clipPlanes(distance, 4);
    expect(near).toBeGreaterThan(0);
    expect(near).toBeLessThan(far);
    expect(far).toBe(distance + 4);
    expect(near).toBeLessThanOrEqual(Math.max(distance - 4, far / 1000));
  }
});

describe("turning", () => {
  const offset: Corner = [1, 2, 3];

  it("keeps the distance, and goes back the way it came", () => {
    const there = turned(offset, 0.3, -0.2);
    expect(length(there)).toBeCloseTo(length(offset), 12);
    turned(there, -0.3, 0.2).forEach((value, axis) => expect(value).toBeCloseTo(offset[axis] ?? NaN, 12));
  });

  it("to the right moves the camera to the right, down moves it down", () => {
    expect(turned([0, 0, 1], 0.1, 0)[0]).toBeGreaterThan(0);
    expect(turned([0, 0, 1], 0, 0.1)[1]).toBeLessThan(0);
  });

  it("stops before the poles", () => {
    for (const polar of [-10, 10]) {
      const [x, , z] = turned(offset, 0, polar);
      expect(Math.hypot(x, z)).toBeGreaterThan(0);
    }
  });
});
