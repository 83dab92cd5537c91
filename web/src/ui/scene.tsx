import { useContext, useEffect, useState } from "preact/hooks";
import { sameOrigin } from "../core/api";
import { galleryHash } from "../core/route";
import { isVisible, titleOf } from "../core/status";
import type { Scene } from "../core/types";
import { Actions } from "./actions";
import { QualityCurve } from "./curve";
import { Figures, FitHead } from "./figures";
import type { SceneState } from "./hooks";
import { useScene } from "./hooks";
import { BackIcon } from "./icons";
import { ImageViewer } from "./image-viewer";
import { MeshDownload } from "./mesh-download";
import { MetadataPanel } from "./metadata";
import { Notice } from "./notice";
import { SessionContext, useMay } from "./session";
import { ShapeViewer } from "./shape-viewer";
import { Sharing } from "./sharing";

function Interfaces({ scene }: { scene: Scene }) {
  return (
    <section class="interfaces">
      <h2>For other viewers</h2>
      <ul>
        {scene.kind === "shape" ? (
          <li><a href={sameOrigin(scene.links.tiles3d)}>3D Tiles</a></li>
        ) : (
          <>
            <li><a href={sameOrigin(scene.links.iiif)}>IIIF Image API</a></li>
            <li><a href={sameOrigin(scene.links.dzi)}>Deep Zoom</a></li>
          </>
        )}
        <li><a href={sameOrigin(scene.links.self)}>JSON</a></li>
      </ul>
    </section>
  );
}

/** What was wrong with the mesh, and mended before the fit. */
function Repairs({ repairs }: { repairs: readonly string[] }) {
  if (repairs.length === 0) return null;
  return (
    <section class="repairs">
      <h2>What was repaired</h2>
      <ul>{repairs.map((repair) => <li key={repair}>{repair}</li>)}</ul>
    </section>
  );
}

function Panel({ state, scene }: { state: SceneState; scene: Scene }) {
  const [error, setError] = useState<string | null>(null);
  const { access } = useContext(SessionContext);
  const mayWrite = useMay("write");
  const changed = () => {
    setError(null);
    state.reload();
  };
  const deleted = () => {
    location.hash = galleryHash;
  };
  return (
    <aside class="panel">
      <a class="back" href={galleryHash}><BackIcon /> All scenes</a>
      <h1>{titleOf(scene)}</h1>
      <FitHead scene={scene} />
      {scene.error !== null && <Notice message={scene.error.message} />}
      {error !== null && <Notice message={error} />}
      <QualityCurve kind={scene.kind} points={state.live?.curve ?? []} />
      <Figures scene={scene} />
      {scene.kind === "shape" && <Repairs repairs={scene.shape.repairs} />}
      {scene.kind === "shape" && isVisible(scene) && <MeshDownload scene={scene} />}
      <Actions scene={scene} onChange={changed} onDeleted={deleted} onError={setError} />
      <MetadataPanel scene={scene} onSaved={state.put} />
      {access === "keys" && mayWrite && <Sharing scene={scene} onSaved={state.put} />}
      <Interfaces scene={scene} />
    </aside>
  );
}

export function ScenePage({ id }: { id: string }) {
  const state = useScene(id);
  const [viewError, setViewError] = useState<string | null>(null);
  useEffect(() => setViewError(null), [state.live?.scene.version]);
  if (state.live === null) {
    return (
      <main class="scene-absent">
        {state.error !== null && <Notice message={state.error} action="Try again" onAction={state.reload} />}
        <a class="back" href={galleryHash}><BackIcon /> All scenes</a>
      </main>
    );
  }
  const { scene } = state.live;
  document.title = `${titleOf(scene)} · Acorn`;
  return (
    <main class="scene">
      <div class="scene-stage">
        {scene.kind === "shape" ? (
          <ShapeViewer scene={scene} onError={setViewError} />
        ) : (
          <ImageViewer scene={scene} onError={setViewError} />
        )}
        {viewError !== null && <Notice message={viewError} />}
      </div>
      <Panel state={state} scene={scene} />
    </main>
  );
}
