import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { listScenes } from "../src/core/api";
import type { Session } from "../src/core/session";
import { asksForKey, canSignOut, may, millisecondsLeft, NOBODY, signIn, signOut, watch } from "../src/core/session";

const OPEN: Session = { access: "open", name: "local", scope: "admin", expires_at: null };
const READER: Session = { access: "keys", name: "anna", scope: "read", expires_at: "2026-01-01T00:01:00Z" };
const START = Date.parse("2026-01-01T00:00:00Z");

function stubFetch(...answers: Response[]) {
  const fetch = vi.fn(async (_path: string, _init?: RequestInit) => answers.shift() ?? Response.error());
  vi.stubGlobal("fetch", fetch);
  return fetch;
}

const refusal = () =>
  Response.json({ error: { code: "unauthenticated", message: "This needs a key." } }, { status: 401 });

beforeEach(() => {
  vi.useFakeTimers({ now: START });
  const target = new EventTarget();
  vi.stubGlobal("addEventListener", target.addEventListener.bind(target));
  vi.stubGlobal("removeEventListener", target.removeEventListener.bind(target));
  vi.stubGlobal("dispatchEvent", target.dispatchEvent.bind(target));
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

describe("a session", () => {
  it("includes the scopes below its own", () => {
    expect([may(READER, "read"), may(READER, "write")]).toEqual([true, false]);
    expect([may(OPEN, "write"), may(OPEN, "admin")]).toEqual([true, true]);
    expect(may(NOBODY, "read")).toBe(false);
  });

  it("can be begun by nobody and ended by whoever began it here", () => {
    expect([NOBODY, READER, OPEN].map(asksForKey)).toEqual([true, false, false]);
    expect([NOBODY, READER, OPEN].map(canSignOut)).toEqual([false, true, false]);
  });

  it("begins with a key and ends on demand", async () => {
    const fetch = stubFetch(Response.json(READER), new Response(null, { status: 204 }), Response.json(NOBODY));
    expect(await signIn(" key\n")).toEqual(READER);
    expect(fetch.mock.calls[0]?.[1]).toMatchObject({ method: "POST", body: '{"key":"key"}' });
    expect(await signOut()).toEqual(NOBODY);
    expect(fetch.mock.calls[1]?.[1]).toMatchObject({ method: "DELETE" });
  });

  it("says so when the key is wrong", async () => {
    stubFetch(refusal());
    await expect(signIn("x")).rejects.toThrow("This needs a key.");
  });

  it("ends in time", () => {
    const onOver = vi.fn();
    const stop = watch(READER, onOver);
    vi.advanceTimersByTime(59_000);
    expect(onOver).not.toHaveBeenCalled();
    vi.advanceTimersByTime(1_000);
    expect(onOver).toHaveBeenCalledOnce();
    stop();
  });

  it("ends when the computer wakes up too late", () => {
    const onOver = vi.fn();
    const stop = watch(READER, onOver, () => START + 120_000);
    expect(onOver).toHaveBeenCalledOnce();
    stop();
    let now = START;
    const later = watch(READER, onOver, () => now);
    now += 120_000;
    dispatchEvent(new Event("focus"));
    expect(onOver).toHaveBeenCalledTimes(2);
    later();
  });

  it("ends when the server does not know it any more", async () => {
    const onOver = vi.fn();
    const stop = watch(READER, onOver);
    stubFetch(refusal(), refusal());
    await expect(listScenes()).rejects.toThrow();
    expect(onOver).toHaveBeenCalledOnce();
    stop();
    await expect(listScenes()).rejects.toThrow();
    expect(onOver).toHaveBeenCalledOnce();
  });

  it("may last longer than a timer can count, or for ever", () => {
    expect(millisecondsLeft({ ...READER, expires_at: "2036-01-01T00:00:00Z" }, START)).toBe(2 ** 31 - 1);
    expect(millisecondsLeft(OPEN, START)).toBeNull();
    const onOver = vi.fn();
    const stop = watch({ ...READER, expires_at: "2026-03-01T00:00:00Z" }, onOver);
    vi.advanceTimersByTime(2 ** 31);
    expect(onOver).not.toHaveBeenCalled();
    vi.advanceTimersByTime(59 * 86_400_000 - 2 ** 31);
    expect(onOver).toHaveBeenCalledOnce();
    stop();
  });
});
