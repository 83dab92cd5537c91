/** The session as component state. */

import { createContext } from "preact";
import { useCallback, useContext, useEffect, useState } from "preact/hooks";
import type { Scope, Session } from "../core/session";
import { getSession, may, NOBODY, signOut, watch } from "../core/session";

export const SessionContext = createContext<Session>(NOBODY);

/** Whether whoever looks at the page has this scope. */
export const useMay = (scope: Scope): boolean => may(useContext(SessionContext), scope);

const OVER = "Your session has ended. Sign in again to go on.";
const NEEDED = "This needs a key.";

export interface SessionState {
  /** null until the first answer. */
  session: Session | null;
  /** Why somebody is to sign in; null when nobody has to. */
  reason: string | null;
  begin: (session: Session) => void;
  end: () => void;
  dismiss: () => void;
}

export function useSession(): SessionState {
  const [session, setSession] = useState<Session | null>(null);
  const [reason, setReason] = useState<string | null>(null);
  useEffect(() => {
    // A server that cannot be reached says so to whatever is asked next.
    getSession().then(setSession, () => setSession(NOBODY));
  }, []);
  useEffect(() => {
    if (session === null) return;
    return watch(session, () => {
      setReason(session.scope === null ? NEEDED : OVER);
      if (session.scope !== null) setSession(NOBODY);
    });
  }, [session]);
  const begin = useCallback((begun: Session) => {
    setSession(begun);
    setReason(null);
  }, []);
  const end = useCallback(() => void signOut().then(begin, () => setReason(NEEDED)), [begin]);
  const dismiss = useCallback(() => setReason(null), []);
  return { session, reason, begin, end, dismiss };
}
