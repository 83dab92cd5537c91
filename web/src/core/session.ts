/** Who looks at the page, what they may do, and when that ends. */

import { json, onUnknown, send } from "./api";

export type Scope = "read" | "write" | "admin";

export interface Session {
  /** open: there is no key, and everybody may do everything. keys: one is needed. */
  access: "open" | "keys";
  name: string | null;
  scope: Scope | null;
  /** When they have to sign in again; null for never. */
  expires_at: string | null;
}

export const NOBODY: Session = { access: "keys", name: null, scope: null, expires_at: null };

const SCOPES: readonly Scope[] = ["read", "write", "admin"];
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** Whether a session is enough for what needs this scope. */
export const may = (session: Session, scope: Scope): boolean =>
  session.scope !== null && SCOPES.indexOf(session.scope) >= SCOPES.indexOf(scope);

/** Whether there is somebody to sign in or out; a proxy's users neither begin nor end here. */
export const asksForKey = (session: Session): boolean => session.access === "keys" && session.scope === null;
export const canSignOut = (session: Session): boolean => session.expires_at !== null;

export const getSession = (): Promise<Session> => json("/session");

export const signIn = (key: string): Promise<Session> =>
  json("/session", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ key: key.trim() }),
  });

export async function signOut(): Promise<Session> {
  await send("/session", { method: "DELETE" });
  return getSession();
}

/** Milliseconds until a session ends, as far as a timer can tell; null when it doesn't. */
export function millisecondsLeft(session: Session, now: number): number | null {
  if (session.expires_at === null) return null;
  return Math.min(Math.max(0, Date.parse(session.expires_at) - now), LONGEST_TIMER_MS);
}

/**
 * Calls back when a session is over: its time has come, or the server doesn't know it any more. Computers
 * sleep, and timers with them: the clock is looked at again when the page is. Returns what stops that.
 */
export function watch(session: Session, onOver: () => void, now: () => number = Date.now): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const look = (): void => {
    clearTimeout(timer);
    const left = millisecondsLeft(session, now());
    if (left === 0) onOver();
    else if (left !== null) timer = setTimeout(look, left);
  };
  const stopListening = onUnknown(onOver);
  addEventListener("focus", look);
  look();
  return () => {
    clearTimeout(timer);
    removeEventListener("focus", look);
    stopListening();
  };
}
