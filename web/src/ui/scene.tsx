import { useEffect, useState } from "preact/hooks";
import { sameOrigin } from "../core/api";
import { galleryHash } from "../core/route";
import { titleOf } from "../core/status";
import type { Scene } from "../core/types";
import { Actions } from "./actions";
import { PsnrCurve } from "./curve";
import { Figures, FitHead } from "./figures";
import type { SceneState } from "./hooks";
import { useScene } from "./hooks";
import { BackIcon } from "./icons";
import { MetadataPanel } from "./metadata";
import { Notice } from "./notice";
import { Viewer } from "./viewer";

function Interfaces({ scene }: { scene: Scene }) {
  return (
    <section class="interfaces">
      <h2>For other viewers</h2>
      <ul>
        <li><a href={sameOrigin(scene.links.iiif)}>IIIF Image API</a></li>
        <li><a href={sameOrigin(scene.links.dzi)}>Deep Zoom</a></li>
        <li><a href={sameOrigin(scene.links.self)}>JSON</a></li>
      </ul>
    </section>
  );
}

function Panel({ state, scene }: { state: SceneState; scene: Scene }) {
  const [error, setError] = useState<string | null>(null);
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
      <PsnrCurve points={state.live?.curve ?? []} />
      <Figures scene={scene} />
      <Actions scene={scene} onChange={changed} onDeleted={deleted} onError={setError} />
      <MetadataPanel scene={scene} onSaved={state.put} />
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
        <Viewer scene={scene} onError={setViewError} />
        {viewError !== null && <Notice message={viewError} />}
      </div>
      <Panel state={state} scene={scene} />
    </main>
  );
}
