import { describe, expect, it } from "vitest";
import { decibelRange, layoutChart, nearestPoint, niceStep, shareRange, ticksWithin } from "../src/core/chart";

const BOX = { left: 10, top: 5, width: 100, height: 50 };
const POINTS = [
  { step: 0, seconds: 0, quality: 20 },
  { step: 300, seconds: 5, quality: 30 },
  { step: 400, seconds: 10, quality: 40 },
];

describe("ticks", () => {
  it.each([
    [10, 5, 2],
    [11, 5, 5],
    [4, 4, 1],
    [0.3, 5, 0.1],
    [1, 5, 0.2],
    [30000, 5, 10000],
  ])("a span of %f in %i parts has steps of %f", (span, count, step) =>
    expect(niceStep(span, count)).toBeCloseTo(step, 12),
  );

  it("stay within the range, without rounding noise", () => {
    expect(ticksWithin([0, 0.3], 0.1)).toEqual([0, 0.1, 0.2, 0.3]);
    expect(ticksWithin([19, 39], 5)).toEqual([20, 25, 30, 35]);
  });
});

it("a flat curve has a range of at least four decibels", () => {
  expect(decibelRange([37.2, 37.3])).toEqual([37, 41]);
  expect(decibelRange([19.5, 38.2])).toEqual([19, 39]);
});

describe("a range of shares", () => {
  it.each([
    [[0.31, 0.97], [0.2, 1]],
    [[0.92, 0.985], [0.92, 1]],
    [[0.999, 0.9991], [0.98, 1]],
    [[1], [0.98, 1]],
    [[0], [0, 1]],
    [[], [0, 1]],
  ])("of %j is %j", (values, range) => expect(shareRange(values)).toEqual(range));

  it("holds every value, and all that is missing to the best", () => {
    for (let low = 0; low <= 1; low += 1 / 64) {
      const [bottom, top] = shareRange([low]);
      expect(bottom).toBeLessThanOrEqual(low);
      expect(bottom).toBeGreaterThanOrEqual(0);
      expect(top).toBe(1);
    }
  });
});

describe("layout", () => {
  it("spans the box", () => {
    expect(layoutChart(POINTS, "image", "seconds", BOX).line).toBe("M10,55L60,30L110,5");
  });

  it("follows the chosen axis", () => {
    expect(layoutChart(POINTS, "image", "step", BOX).line).toBe("M10,55L85,30L110,5");
  });

  it("closes the area along the lower edge", () => {
    expect(layoutChart(POINTS, "image", "seconds", BOX).area).toBe("M10,55L60,30L110,5L110,55L10,55Z");
  });

  it("has every tick in the box", () => {
    const { xTicks, yTicks } = layoutChart(POINTS, "image", "seconds", BOX);
    expect(xTicks.length).toBeGreaterThan(2);
    expect(yTicks.length).toBeGreaterThan(2);
    expect(xTicks.every(({ at }) => at >= 10 && at <= 110)).toBe(true);
    expect(yTicks.every(({ at }) => at >= 5 && at <= 55)).toBe(true);
  });

  it("is empty and finite without points", () => {
    const { line, area, xTicks } = layoutChart([], "image", "seconds", BOX);
    expect([line, area]).toEqual(["", ""]);
    expect(xTicks.every(({ at }) => Number.isFinite(at))).toBe(true);
  });
});

describe("nearest point", () => {
  it("is found along the axis", () => {
    expect(nearestPoint(POINTS, "seconds", 0.6)).toBe(POINTS[1]);
    expect(nearestPoint(POINTS, "seconds", 1)).toBe(POINTS[2]);
    expect(nearestPoint(POINTS, "step", 0.1)).toBe(POINTS[0]);
  });

  it("is none without points", () => expect(nearestPoint([], "seconds", 0.5)).toBeNull());
});
