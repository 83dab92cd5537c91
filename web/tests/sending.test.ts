import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ApiError } from "../src/core/api";
import { errorOf, outcome } from "../src/core/sending";
import type { UploadResult } from "../src/core/types";
import { makeScene } from "./scenes";

const ERROR = { code: "bad_image", message: "Not an image.", limit: null, value: null };

const result = (part: Partial<UploadResult>): UploadResult => ({
  id: "u",
  status: "checking",
  offset: 9,
  length: 9,
  scene_id: null,
  error: null,
  ...part,
});

/** Lets fetch give these answers, one after the other; null is a connection that breaks. */
function stubFetch(...answers: (object | null)[]) {
  const fetch = vi.fn(async (_path: string) => {
    const answer = answers.shift() ?? null;
    if (answer === null) throw new TypeError("Failed to fetch");
    return Response.json(answer);
  });
  vi.stubGlobal("fetch", fetch);
  return fetch;
}

const { signal } = new AbortController();

describe("an upload that has arrived", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => {
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  it("is waited for until there is a scene, also when the server goes away for a while", async () => {
    const scene = makeScene();
    const fetch = stubFetch(result({}), null, result({ scene_id: scene.id }), scene);
    const coming = outcome("/uploads/u", signal);
    await vi.runAllTimersAsync();
    expect(await coming).toEqual(scene);
    expect(fetch.mock.calls.map(([path]) => path)).toEqual([
      "/uploads/u",
      "/uploads/u",
      "/uploads/u",
      `/scenes/${scene.id}`,
    ]);
  });

  it("fails with the server's words", async () => {
    stubFetch(result({ status: "failed", error: ERROR }));
    await expect(outcome("/uploads/u", signal)).rejects.toThrow("Not an image.");
  });

  it("is given up when the server stays away", async () => {
    const fetch = stubFetch();
    const refused = expect(outcome("/uploads/u", signal, 3)).rejects.toThrow("cannot be reached");
    await vi.runAllTimersAsync();
    await refused;
    expect(fetch).toHaveBeenCalledTimes(3);
  });
});

describe("what the library throws", () => {
  it("becomes the server's words", () => {
    const response = { getStatus: () => 415, getBody: () => JSON.stringify({ error: ERROR }) };
    const error = Object.assign(new Error("tus: unexpected response"), { originalResponse: response });
    expect(errorOf(error)).toMatchObject({ message: "Not an image.", code: "bad_image", status: 415 });
  });

  it("says so when there was no answer", () => {
    const error = errorOf(Object.assign(new Error("tus: failed"), { originalResponse: null }));
    expect(error).toBeInstanceOf(ApiError);
    expect(error.message).toContain("cannot be reached");
  });
});
