import { useCallback } from "preact/hooks";
import { galleryHash, sceneHash } from "../core/route";
import type { Scene } from "../core/types";
import { GalleryPage } from "./gallery";
import { useGallery, useRoute, useUploads } from "./hooks";
import { Logo } from "./icons";
import { ScenePage } from "./scene";
import { UploadList } from "./uploads";

function Masthead() {
  return (
    <header class="masthead">
      <a class="brand" href={galleryHash} aria-label="Acorn: all scenes">
        <Logo />
        <span>Acorn</span>
      </a>
      <nav aria-label="Service">
        <a href="/docs">API</a>
      </nav>
    </header>
  );
}

export function App() {
  const route = useRoute();
  const gallery = useGallery(route.page === "gallery");
  const onUploaded = useCallback(
    (scene: Scene, together: number) => {
      gallery.put(scene);
      if (together === 1) location.hash = sceneHash(scene.id);
    },
    [gallery.put],
  );
  const { uploads, queue } = useUploads(onUploaded);
  return (
    <>
      <Masthead />
      {route.page === "gallery" ? (
        <GalleryPage state={gallery} onFiles={(files, preset) => queue.add(files, preset)} />
      ) : (
        <ScenePage key={route.id} id={route.id} />
      )}
      <UploadList uploads={uploads} onDismiss={(key) => queue.dismiss(key)} />
    </>
  );
}
