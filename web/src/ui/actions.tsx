import { useRef, useState } from "preact/hooks";
import {
  cancelScene,
  deleteScene,
  messageOf,
  pauseScene,
  resumeScene,
  retryScene,
  sameOrigin,
} from "../core/api";
import { canCancel, canPause, canResume, canRetry, isVisible, titleOf } from "../core/status";
import type { Scene } from "../core/types";
import { DownloadIcon, PauseIcon, ResumeIcon, RetryIcon, StopIcon, TrashIcon } from "./icons";
import { useMay } from "./session";

function DeleteButton({ scene, onDelete }: { scene: Scene; onDelete: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  return (
    <>
      <button class="button quiet" onClick={() => dialog.current?.showModal()}>
        <TrashIcon /> Delete
      </button>
      <dialog ref={dialog} aria-labelledby="delete-question">
        <form method="dialog">
          <h2 id="delete-question">Delete “{titleOf(scene)}”?</h2>
          <p>The field and the original are removed for good.</p>
          <div class="actions">
            <button class="button danger" onClick={onDelete}>Delete</button>
            <button class="button">Keep</button>
          </div>
        </form>
      </dialog>
    </>
  );
}

interface Props {
  scene: Scene;
  /** The server changed the scene's life: it is to be asked anew. */
  onChange: () => void;
  onDeleted: () => void;
  onError: (message: string) => void;
}

export function Actions({ scene, onChange, onDeleted, onError }: Props) {
  const [busy, setBusy] = useState(false);
  const mayRead = useMay("read");
  const mayWrite = useMay("write");
  const run = (call: (id: string) => Promise<void>, then: () => void) => {
    setBusy(true);
    call(scene.id)
      .then(then, (reason: unknown) => onError(messageOf(reason)))
      .finally(() => setBusy(false));
  };
  return (
    <div class="actions">
      {mayWrite && canResume(scene.status) && (
        <button class="button primary" disabled={busy} onClick={() => run(resumeScene, onChange)}>
          <ResumeIcon /> Resume
        </button>
      )}
      {mayWrite && canPause(scene.status) && (
        <button class="button" disabled={busy} onClick={() => run(pauseScene, onChange)}>
          <PauseIcon /> Pause
        </button>
      )}
      {mayWrite && canCancel(scene.status) && (
        <button class="button" disabled={busy} onClick={() => run(cancelScene, onChange)}>
          <StopIcon /> Cancel
        </button>
      )}
      {mayWrite && canRetry(scene.status) && (
        <button class="button primary" disabled={busy} onClick={() => run(retryScene, onChange)}>
          <RetryIcon /> {isVisible(scene) ? "Continue" : "Try again"}
        </button>
      )}
      {isVisible(scene) && (
        <a class="button" href={sameOrigin(scene.links.file)} download>
          <DownloadIcon /> .acorn
        </a>
      )}
      {mayRead && (
        <a class="button" href={sameOrigin(scene.links.original)} download>
          <DownloadIcon /> Original
        </a>
      )}
      {mayWrite && <DeleteButton scene={scene} onDelete={() => run(deleteScene, onDeleted)} />}
    </div>
  );
}
