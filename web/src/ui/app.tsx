import { useCallback, useState } from "preact/hooks";
import { galleryHash, sceneHash } from "../core/route";
import type { Session } from "../core/session";
import { asksForKey, canSignOut } from "../core/session";
import type { Scene } from "../core/types";
import { GalleryPage } from "./gallery";
import { useGallery, useRoute, useUploads } from "./hooks";
import { Logo } from "./icons";
import { ScenePage } from "./scene";
import { SessionContext, useSession } from "./session";
import { SignIn } from "./sign-in";
import { UploadList } from "./uploads";

interface MastheadProps {
  session: Session;
  onSignIn: () => void;
  onSignOut: () => void;
}

function Masthead({ session, onSignIn, onSignOut }: MastheadProps) {
  return (
    <header class="masthead">
      <a class="brand" href={galleryHash} aria-label="Acorn: all scenes">
        <Logo />
        <span>Acorn</span>
      </a>
      <nav aria-label="Service">
        {asksForKey(session) && <button class="button" onClick={onSignIn}>Sign in</button>}
        {session.access === "keys" && session.name !== null && <span>{session.name}</span>}
        {canSignOut(session) && <button class="quiet" onClick={onSignOut}>Sign out</button>}
        <a href="/docs">API</a>
      </nav>
    </header>
  );
}

export function App() {
  const { session, reason, begin, end, dismiss } = useSession();
  const [asked, setAsked] = useState(false);
  const route = useRoute();
  // What may be done decides what is shown, and is shown anew when somebody signs in or out.
  const who = session && `${session.name} ${session.scope}`;
  const gallery = useGallery(who !== null && route.page === "gallery", who);
  const onUploaded = useCallback(
    (scene: Scene, together: number) => {
      gallery.put(scene);
      if (together === 1) location.hash = sceneHash(scene.id);
    },
    [gallery.put],
  );
  const { uploads, queue } = useUploads(onUploaded);
  if (session === null) return null;
  const close = () => {
    setAsked(false);
    dismiss();
  };
  return (
    <SessionContext.Provider value={session}>
      <Masthead session={session} onSignIn={() => setAsked(true)} onSignOut={end} />
      {route.page === "gallery" ? (
        <GalleryPage state={gallery} onFiles={(files, preset) => queue.add(files, preset)} />
      ) : (
        <ScenePage key={`${route.id} ${who}`} id={route.id} />
      )}
      <UploadList uploads={uploads} onDismiss={(key) => queue.dismiss(key)} />
      {(asked || reason !== null) && (
        <SignIn
          reason={reason}
          onSignedIn={(begun) => {
            setAsked(false);
            begin(begun);
          }}
          onClose={close}
        />
      )}
    </SessionContext.Provider>
  );
}
