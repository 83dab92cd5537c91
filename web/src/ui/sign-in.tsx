import { useEffect, useRef, useState } from "preact/hooks";
import { messageOf } from "../core/api";
import type { Session } from "../core/session";
import { signIn } from "../core/session";
import { Notice } from "./notice";

interface Props {
  /** Why somebody is asked; null when they asked themselves. */
  reason: string | null;
  onSignedIn: (session: Session) => void;
  onClose: () => void;
}

/** Asks for a key. It goes to the server once, and stays in no place that scripts can read. */
export function SignIn({ reason, onSignedIn, onClose }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const [error, setError] = useState<string | null>(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => dialog.current?.showModal(), []);
  const submit = (event: SubmitEvent & { currentTarget: HTMLFormElement }) => {
    event.preventDefault();
    const key = String(new FormData(event.currentTarget).get("key") ?? "");
    setBusy(true);
    signIn(key)
      .then(onSignedIn, (failure: unknown) => setError(messageOf(failure)))
      .finally(() => setBusy(false));
  };
  return (
    <dialog ref={dialog} aria-labelledby="sign-in-title" onClose={onClose}>
      <form class="sign-in" onSubmit={submit}>
        <h2 id="sign-in-title">Sign in</h2>
        <p>{reason ?? "With a key of this service."}</p>
        <label>
          Key
          <input type="password" name="key" required autocomplete="current-password" autofocus />
        </label>
        {error !== null && <Notice message={error} />}
        <div class="actions">
          <button class="button primary" type="submit" disabled={busy}>Sign in</button>
          <button class="button" type="button" onClick={() => dialog.current?.close()}>Not now</button>
        </div>
      </form>
    </dialog>
  );
}
