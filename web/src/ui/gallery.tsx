import { useState } from "preact/hooks";
import { versioned } from "../core/api";
import { formatCount, formatPercent, formatPixels } from "../core/format";
import { formatQuality, qualityOf } from "../core/quality";
import { sceneHash } from "../core/route";
import { fractionDone, isActive, isVisible, statusLabel, titleOf } from "../core/status";
import type { Preset, Scene } from "../core/types";
import { Dropzone } from "./dropzone";
import type { GalleryState } from "./hooks";
import { Logo, ShapeIcon } from "./icons";
import { Notice } from "./notice";
import { useMay } from "./session";

/** A cube holds the place until the picture, which takes the server a moment, has come. */
function ShapeThumbnail({ src }: { src: string | null }) {
  const [there, setThere] = useState(false);
  return (
    <div class={there ? "thumbnail shape" : "thumbnail shape empty"}>
      {!there && <ShapeIcon />}
      {src !== null && (
        <img
          src={src}
          alt=""
          loading="lazy"
          decoding="async"
          onLoad={() => setThere(true)}
          onError={() => setThere(false)}
        />
      )}
    </div>
  );
}

function Thumbnail({ scene }: { scene: Scene }) {
  const src = versioned(scene.links.thumbnail, scene.version);
  if (scene.kind === "shape") return <ShapeThumbnail src={isVisible(scene) ? src : null} />;
  if (!isVisible(scene)) return <div class="thumbnail empty"><Logo /></div>;
  return <div class="thumbnail"><img src={src} alt="" loading="lazy" decoding="async" /></div>;
}

function detailOf(scene: Scene): string {
  if (scene.status === "fitting") return `${statusLabel(scene)}, ${formatPercent(fractionDone(scene))}`;
  if (scene.status !== "ready") return statusLabel(scene);
  if (scene.kind === "image") return scene.width && scene.height ? formatPixels(scene.width, scene.height) : "";
  return scene.shape.faces === null ? "Shape" : `${formatCount(scene.shape.faces)} faces`;
}

function SceneCard({ scene }: { scene: Scene }) {
  const quality = qualityOf(scene.progress);
  return (
    <li>
      <a class={`card ${scene.status}`} href={sceneHash(scene.id)}>
        <Thumbnail scene={scene} />
        {isActive(scene.status) && (
          <progress max={1} value={fractionDone(scene)} aria-label={`Fit of ${titleOf(scene)}`} />
        )}
        <span class="card-title">{titleOf(scene)}</span>
        <span class="card-detail">
          <span class="card-status">{detailOf(scene)}</span>
          {quality !== null && <span class="card-quality">{formatQuality(scene.kind, quality)}</span>}
        </span>
      </a>
    </li>
  );
}

interface Props {
  state: GalleryState;
  onFiles: (files: readonly File[], preset: Preset) => void;
}

export function GalleryPage({ state, onFiles }: Props) {
  const { gallery, error, more } = state;
  const mayUpload = useMay("write");
  document.title = "Acorn";
  // The welcome and the list look different: neither is shown before it is known which it is.
  if (gallery === null && error === null) return <main class="gallery" aria-busy="true" />;
  return (
    <main class="gallery">
      {mayUpload && <Dropzone welcoming={gallery?.total === 0} onFiles={onFiles} />}
      {!mayUpload && gallery?.total === 0 && <p class="hint">There is nothing here that you may see.</p>}
      {error !== null && <Notice message={error} action="Try again" onAction={state.refresh} />}
      <ul class="cards" aria-label="Scenes">
        {gallery?.scenes.map((scene) => <SceneCard key={scene.id} scene={scene} />)}
      </ul>
      {gallery !== null && gallery.next !== null && (
        <button class="button more" onClick={more}>
          Show more ({gallery.scenes.length} of {gallery.total})
        </button>
      )}
    </main>
  );
}
