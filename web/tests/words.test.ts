/** What people read: numbers, names, addresses. */

import { describe, expect, it } from "vitest";
import { formatBytes, formatLength, formatPercent, formatPixels, formatSeconds } from "../src/core/format";
import { formatQuality, MEASURES, qualityOf } from "../src/core/quality";
import { parseRoute, sceneHash } from "../src/core/route";
import {
  canCancel,
  canPause,
  canResume,
  canRetry,
  fractionDone,
  statusLabel,
  timeLeft,
  titleOf,
} from "../src/core/status";
import { makeProgress, makeScene, makeShape } from "./scenes";

it.each([
  [0, "0 B"],
  [999, "999 B"],
  [1000, "1 KB"],
  [785_610, "786 KB"],
  [20_386_114, "20.4 MB"],
  [3.2e12, "3.2 TB"],
  [5e15, "5000 TB"],
])("%d bytes read %j", (bytes, text) => expect(formatBytes(bytes)).toBe(text));

it.each([
  [0.04, "0.0 s"],
  [9.94, "9.9 s"],
  [9.96, "10 s"],
  [59.6, "1 min 0 s"],
  [3599, "59 min 59 s"],
  [7260, "2 h 1 min"],
])("%f seconds read %j", (seconds, text) => expect(formatSeconds(seconds)).toBe(text));

it("sizes name megapixels from one on", () => {
  expect(formatPixels(512, 512)).toBe("512 × 512");
  expect(formatPixels(5000, 4000)).toBe("5,000 × 4,000 · 20 MP");
});

it.each([
  [0.0012345, "0.00123"],
  [5.119999, "5.12"],
  [64, "64"],
  [1024.4, "1,024"],
])("a length of %f reads %j", (length, text) => expect(formatLength(length)).toBe(text));

describe("quality", () => {
  it.each([
    ["image", 34.06, "34.1 dB"],
    ["shape", 0.87659, "0.876 IoU"],
    ["shape", 0.29, "0.290 IoU"],
    ["shape", 0.99, "0.9900 IoU"],
    ["shape", 0.99998, "0.9999 IoU"],
    ["shape", 1, "1.0000 IoU"],
  ] as const)("of an %s, %f, reads %j", (kind, quality, text) => expect(formatQuality(kind, quality)).toBe(text));

  it("is whichever was measured", () => {
    const progress = makeProgress(1, null);
    expect(qualityOf({ ...progress, psnr: 30 })).toBe(30);
    expect(qualityOf({ ...progress, iou: 0 })).toBe(0);
    expect(qualityOf(progress)).toBeNull();
    expect(qualityOf(null)).toBeNull();
  });

  it("has a heading that names its unit", () => {
    for (const { heading, unit } of Object.values(MEASURES)) expect(heading).toContain(unit);
  });
});

it("a share never reads as done too early", () => expect(formatPercent(0.999)).toBe("99 %"));

describe("routes", () => {
  it("of scenes are read back", () => {
    const id = "0123456789abcdefghjkmnpqrs";
    expect(parseRoute(sceneHash(id))).toEqual({ page: "scene", id });
  });

  it.each(["", "#/", "#/scene/", "#/scene/A B", "#/scene/x/y", "#/other"])("%j is the list", (hash) =>
    expect(parseRoute(hash)).toEqual({ page: "gallery" }),
  );
});

describe("a scene", () => {
  it("without a title has a name", () => {
    expect(titleOf(makeScene({ title: "  " }))).toBe("Untitled");
    expect(titleOf(makeScene({ title: null }))).toBe("Untitled");
  });

  it("being fitted tells its stage, at rest its status", () => {
    const progress = { ...makeProgress(1, null), stage: "measuring" as const };
    expect(statusLabel(makeScene({ progress }))).toBe("Measuring the image");
    expect(statusLabel(makeShape({ progress }))).toBe("Measuring the shape");
    expect(statusLabel(makeScene({ progress, status: "failed" }))).toBe("Failed");
  });

  it("that waits tells its place in the line", () => {
    expect(statusLabel(makeScene({ status: "queued", queue_position: 1 }))).toBe("Waiting, next in line");
    expect(statusLabel(makeScene({ status: "queued", queue_position: 12 }))).toBe("Waiting, number 12 in line");
    expect(statusLabel(makeScene({ status: "queued" }))).toBe("Waiting");
  });

  it.each([
    [0.2, "about 1 s left"],
    [54, "about 54 s left"],
    [100, "about 2 min left"],
    [3599, "about 1 h 0 min left"],
    [9000, "about 2 h 30 min left"],
  ])("with %f seconds left tells %j", (seconds_left, text) =>
    expect(timeLeft(makeScene({ seconds_left }))).toBe(text),
  );

  it("at rest, or without a guess, tells no time", () => {
    expect(timeLeft(makeScene())).toBeNull();
    expect(timeLeft(makeScene({ status: "paused", seconds_left: 3 }))).toBeNull();
  });

  it.each([
    ["queued", "cancel pause"],
    ["fitting", "cancel pause"],
    ["paused", "cancel resume"],
    ["ready", ""],
    ["failed", "retry"],
    ["cancelled", "retry"],
  ] as const)("that is %s can be told to: %j", (status, words) => {
    const can = { cancel: canCancel, pause: canPause, resume: canResume, retry: canRetry };
    const allowed = Object.entries(can).filter(([, allows]) => allows(status));
    expect(allowed.map(([word]) => word).join(" ")).toBe(words);
  });

  it("knows how far its fit is", () => {
    expect(fractionDone(makeScene({ progress: makeProgress(25, 30) }))).toBe(0.25);
    expect(fractionDone(makeScene())).toBe(0);
    expect(fractionDone(makeScene({ status: "ready" }))).toBe(1);
    expect(fractionDone(makeScene({ progress: { ...makeProgress(0, null), steps: 0 } }))).toBe(0);
  });
});
