import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import {
  ApiError,
  deleteScene,
  editScene,
  errorFrom,
  getMesh,
  listScenes,
  meshPath,
  patientFetch,
  sameOrigin,
  tilesetOf,
  titleFromFileName,
  versioned,
} from "../src/core/api";
import { makeShape } from "./scenes";

afterEach(() => vi.unstubAllGlobals());

function stubFetch(answer: () => Promise<Response>) {
  const fetch = vi.fn((_path: string, _init?: RequestInit) => answer());
  vi.stubGlobal("fetch", fetch);
  return fetch;
}

describe("errors", () => {
  it("carry the server's words", () => {
    const body = { error: { code: "too_large", message: "Too big.", limit: "max", value: 3 } };
    const error = errorFrom(413, JSON.stringify(body));
    expect(error).toMatchObject({ message: "Too big.", code: "too_large", status: 413 });
  });

  it.each(["", "<html>", "null", "{}", '{"error": null}', '{"error": "x"}'])(
    "name the status when a proxy answers %j",
    (text) => expect(errorFrom(502, text).message).toBe("The server answered with status 502."),
  );

  it("are thrown by calls", async () => {
    const body = { error: { code: "not_found", message: "No such scene.", limit: null, value: null } };
    stubFetch(async () => Response.json(body, { status: 404 }));
    await expect(deleteScene("x")).rejects.toThrow("No such scene.");
  });

  it("say so when there is no server", async () => {
    stubFetch(() => Promise.reject(new TypeError("Failed to fetch")));
    await expect(deleteScene("x")).rejects.toBeInstanceOf(ApiError);
    await expect(deleteScene("x")).rejects.toThrow("cannot be reached");
  });
});

describe("a busy server", () => {
  const busy = () => Response.json({ error: { code: "unavailable", message: "Busy." } }, { status: 503 });
  const list = () => Response.json({ items: [], next: null, total: 7 });

  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  it("is asked again by readers", async () => {
    const answers = [busy(), busy(), list()];
    stubFetch(async () => answers.shift() ?? busy());
    const reading = listScenes();
    await vi.runAllTimersAsync();
    expect((await reading).total).toBe(7);
  });

  it("is believed in the end", async () => {
    const fetch = stubFetch(async () => busy());
    const refused = expect(listScenes()).rejects.toThrow("Busy.");
    await vi.runAllTimersAsync();
    await refused;
    expect(fetch).toHaveBeenCalledTimes(3);
  });

  it("is not asked twice to change something", async () => {
    const fetch = stubFetch(async () => busy());
    await expect(deleteScene("x")).rejects.toThrow("Busy.");
    expect(fetch).toHaveBeenCalledTimes(1);
  });
});

describe("calls", () => {
  it("page through the list by its cursor", async () => {
    const fetch = stubFetch(async () => Response.json({ items: [], next: null, total: 0 }));
    await listScenes("a b&c");
    expect(fetch.mock.calls[0]?.[0]).toBe("/scenes?limit=48&cursor=a+b%26c");
  });

  it("send only the changes", async () => {
    const fetch = stubFetch(async () => Response.json({}));
    await editScene("abc", { title: "New" });
    expect(fetch.mock.calls[0]?.[0]).toBe("/scenes/abc");
    expect(fetch.mock.calls[0]?.[1]).toMatchObject({ method: "PATCH", body: '{"title":"New"}' });
  });
});

describe("links", () => {
  it("lose their origin and keep the rest", () => {
    expect(sameOrigin("http://inner:8000/iiif/x/full/!400,400/0/default.jpg?a=1")).toBe(
      "/iiif/x/full/!400,400/0/default.jpg?a=1",
    );
    expect(sameOrigin("/scenes/x")).toBe("/scenes/x");
  });

  it("carry the version", () => {
    expect(versioned("/a.jpg", 3)).toBe("/a.jpg?v=3");
    expect(versioned("http://h/a.jpg?b=1", 3)).toBe("/a.jpg?b=1&v=3");
  });
});

it.each([
  ["photo.jpg", "photo"],
  ["my.holiday.tar.png", "my.holiday.tar"],
  ["C:\\pictures\\pluto.tif", "pluto"],
  ["no extension", "no extension"],
  [".acorn", ".acorn"],
])("the title of %j is %j", (name, title) => expect(titleFromFileName(name)).toBe(title));

describe("a shape", () => {
  const shape = makeShape({ version: 3 });

  it("has another tileset in each version, at the page's own origin", () => {
    expect(tilesetOf(shape)).toBe(`/tiles3d/${shape.id}/tileset.json?v=3`);
    expect(tilesetOf({ ...shape, version: 4 })).not.toBe(tilesetOf(shape));
    expect(tilesetOf({ ...shape, version: 0 })).toBeNull();
  });

  it("has meshes of every resolution and format", () => {
    expect(meshPath(shape, 512, "stl")).toBe(`/scenes/${shape.id}/mesh?resolution=512&format=stl`);
  });

  it("says why there is no mesh, and ends quietly when stopped", async () => {
    const body = { error: { code: "too_large", message: "Too fine.", limit: null, value: null } };
    stubFetch(async () => Response.json(body, { status: 400 }));
    const control = new AbortController();
    await expect(getMesh(shape, 1024, "glb", control.signal)).rejects.toThrow("Too fine.");
    control.abort();
    stubFetch(() => Promise.reject(control.signal.reason));
    await expect(getMesh(shape, 1024, "glb", control.signal)).rejects.toThrow(DOMException);
  });
});

describe("a library's request", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  async function statusAfter(statuses: number[], init: RequestInit = {}) {
    const fetch = stubFetch(async () => new Response(null, { status: statuses.shift() ?? 503 }));
    const asking = patientFetch("/tile", init, 3);
    await vi.runAllTimersAsync();
    return [(await asking).status, fetch.mock.calls.length];
  }

  it("waits for a busy server, for some time", async () => {
    expect(await statusAfter([503, 200])).toEqual([200, 2]);
    expect(await statusAfter([])).toEqual([503, 3]);
  });

  it("is not repeated when refused, nor when it was stopped", async () => {
    expect(await statusAfter([404, 200])).toEqual([404, 1]);
    expect(await statusAfter([503, 200], { signal: AbortSignal.abort() })).toEqual([503, 1]);
  });
});
