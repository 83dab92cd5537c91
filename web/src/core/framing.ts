/**
 * Where a camera stands to see a shape. Renderer-free.
 *
 * The viewer's world is right-handed with y up. The shape is moved to its middle and scaled so that
 * the sphere around its bounds has radius 1: whatever the units of the mesh, one set of limits fits.
 */

import type { Bounds, Corner } from "./types";

/** An axis of the mesh that points up. Many meshes have y up, those for printing z. */
export type UpAxis = "y" | "z";

/** How mesh coordinates become the viewer's: `scale * (position - centre)`, then turned if z is up. */
export interface Placement {
  centre: Corner;
  scale: number;
}

const map = (from: Corner, change: (value: number, axis: 0 | 1 | 2) => number): Corner => [
  change(from[0], 0),
  change(from[1], 1),
  change(from[2], 2),
];

const dot = (a: Corner, b: Corner): number => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

const cross = (a: Corner, b: Corner): Corner => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];

const normalised = (vector: Corner): Corner => {
  const length = Math.hypot(...vector);
  return map(vector, (value) => value / length);
};

/** Moves a box to the middle of the world, into the unit sphere; a point becomes no larger than it is. */
export function placementOf([low, high]: Bounds): Placement {
  const radius = Math.hypot(...map(high, (value, axis) => value - low[axis])) / 2;
  return { centre: map(low, (value, axis) => (value + high[axis]) / 2), scale: radius > 0 ? 1 / radius : 1 };
}

/** Turns a position of the placed mesh so that y is up. */
export const upright = ([x, y, z]: Corner, up: UpAxis): Corner => (up === "y" ? [x, y, z] : [x, z, -y]);

/** The corners of a box in the viewer's world. */
export function placedCorners(bounds: Bounds, { centre, scale }: Placement, up: UpAxis): Corner[] {
  return Array.from({ length: 8 }, (_, bits) => {
    const corner = map(bounds[0], (_low, axis) => (bounds[(bits >> axis) & 1 ? 1 : 0])[axis]);
    return upright(map(corner, (value, axis) => scale * (value - centre[axis])), up);
  });
}

/** From the front, the right and above, as the service's thumbnails see a shape. */
export const FIRST_VIEW: Corner = [0.55, 0.4, 0.8];
/** Share of the view that stays free around the shape. */
const MARGIN = 0.08;

/**
 * How far from the world's middle a camera that looks at it along -direction stands to just see all points.
 * fov is the vertical angle of view in degrees, aspect width by height.
 */
export function framingDistance(points: readonly Corner[], direction: Corner, fov: number, aspect: number): number {
  const back = normalised(direction);
  const right = normalised(cross([0, 1, 0], back));
  const up = cross(back, right);
  const tall = Math.tan((fov * Math.PI) / 360) * (1 - MARGIN);
  const wide = tall * aspect;
  const distances = points.map((point) => {
    const side = Math.max(Math.abs(dot(point, right)) / wide, Math.abs(dot(point, up)) / tall);
    return dot(point, back) + side;
  });
  return Math.max(...distances, 0);
}

/** Where the first view of a shape is from, in the viewer's world. */
export function firstPosition(bounds: Bounds, up: UpAxis, fov: number, aspect: number): Corner {
  const corners = placedCorners(bounds, placementOf(bounds), up);
  const distance = framingDistance(corners, FIRST_VIEW, fov, aspect);
  return map(normalised(FIRST_VIEW), (value) => value * distance);
}

/** Near and far plane for a camera at a distance from the middle of a sphere with everything in it. */
export function clipPlanes(distance: number, radius: number): { near: number; far: number } {
  const far = distance + radius;
  // The depth buffer has 24 bits: a ratio of some thousands leaves enough of them everywhere.
  return { near: Math.max(distance - radius, far / 5000), far };
}

/** Never quite above or below, where left and right have no meaning. */
const LEAST_POLAR = 0.01;

/**
 * An offset from the target, turned around it: to the right by `azimuth`, and down by `polar`, in radians.
 */
export function turned(offset: Corner, azimuth: number, polar: number): Corner {
  const radius = Math.hypot(...offset);
  const around = Math.atan2(offset[0], offset[2]) + azimuth;
  const from = Math.acos(Math.min(1, Math.max(-1, offset[1] / radius))) + polar;
  const down = Math.min(Math.PI - LEAST_POLAR, Math.max(LEAST_POLAR, from));
  const flat = radius * Math.sin(down);
  return [flat * Math.sin(around), radius * Math.cos(down), flat * Math.cos(around)];
}
