import { formatPercent } from "../core/format";
import type { Upload } from "../core/uploads";
import { CloseIcon } from "./icons";

function describe({ share, error }: Upload): string {
  if (error !== null) return error;
  if (share === null) return "Waiting";
  return share < 1 ? `Sending, ${formatPercent(share)}` : "Being checked";
}

function UploadRow({ upload, onDismiss }: { upload: Upload; onDismiss: () => void }) {
  return (
    <li class={upload.error === null ? "upload" : "upload failed"}>
      <div class="upload-text">
        <strong>{upload.name}</strong>
        <span role={upload.error === null ? undefined : "alert"}>{describe(upload)}</span>
      </div>
      <button
        class="quiet"
        onClick={onDismiss}
        aria-label={`${upload.error === null ? "Stop" : "Dismiss"} ${upload.name}`}
      >
        <CloseIcon />
      </button>
      {upload.error === null && <progress max={1} value={upload.share ?? 0} aria-label={upload.name} />}
    </li>
  );
}

interface Props {
  uploads: readonly Upload[];
  onDismiss: (key: number) => void;
}

/** The uploads under way or failed, in a corner of every page. */
export function UploadList({ uploads, onDismiss }: Props) {
  if (uploads.length === 0) return null;
  return (
    <ul class="uploads" aria-label="Uploads">
      {uploads.map((upload) => (
        <UploadRow key={upload.key} upload={upload} onDismiss={() => onDismiss(upload.key)} />
      ))}
    </ul>
  );
}
