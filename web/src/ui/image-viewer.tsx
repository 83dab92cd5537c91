import { useEffect, useRef, useState } from "preact/hooks";
import { getImageInfo, getTree, messageOf } from "../core/api";
import { isVisible, titleOf } from "../core/status";
import type { BlockTree, ImageScene } from "../core/types";
import { LevelLegend } from "./legend";
import type { Stage } from "./stage";
import { TreeCanvas } from "./tree-canvas";
import { BlocksControl, ViewTools, Waiting } from "./view-tools";

/** OpenSeadragon, loaded when the first picture is opened, on the newest version of the scene. */
function useStage(scene: ImageScene, onError: (message: string) => void) {
  const element = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const [stage, setStage] = useState<Stage | null>(null);
  const [tree, setTreeCanvas] = useState<TreeCanvas | null>(null);
  const visible = isVisible(scene);
  useEffect(() => {
    if (!visible) return;
    let left = false;
    let made: Stage | null = null;
    const make = async () => {
      const { Stage } = await import("./stage");
      if (left || element.current === null || canvas.current === null) return;
      const treeCanvas = new TreeCanvas(canvas.current);
      made = new Stage(element.current, (view) => treeCanvas.setView(view));
      setStage(made);
      setTreeCanvas(treeCanvas);
    };
    make().catch((reason: unknown) => onError(messageOf(reason)));
    return () => {
      left = true;
      made?.destroy();
    };
  }, [visible]);
  useEffect(() => {
    if (stage === null || !visible) return;
    const show = async () => stage.show(await getImageInfo(scene), scene.version);
    show().catch((reason: unknown) => onError(messageOf(reason)));
  }, [stage, scene.version]);
  return { element, canvas, stage, treeCanvas: tree };
}

/** The scene's block tree while it is wanted, kept up with the scene's version. */
function useTree(scene: ImageScene, wanted: boolean, onError: (message: string) => void): BlockTree | null {
  const [tree, setTree] = useState<BlockTree | null>(null);
  useEffect(() => {
    if (!wanted || !isVisible(scene)) return;
    let left = false;
    getTree(scene).then(
      (loaded) => left || setTree(loaded),
      (reason: unknown) => onError(messageOf(reason)),
    );
    return () => {
      left = true;
    };
  }, [wanted, scene.version]);
  return wanted ? tree : null;
}

export function ImageViewer({ scene, onError }: { scene: ImageScene; onError: (message: string) => void }) {
  const frame = useRef<HTMLElement>(null);
  const [shown, setShown] = useState(false);
  const [opacity, setOpacity] = useState(0.8);
  const { element, canvas, stage, treeCanvas } = useStage(scene, onError);
  const tree = useTree(scene, shown, onError);
  useEffect(() => treeCanvas?.setTree(tree), [treeCanvas, tree]);
  return (
    <section class="stage" ref={frame} aria-label={`Picture: ${titleOf(scene)}`}>
      <div class="stage-picture" ref={element} />
      <canvas class="stage-tree" ref={canvas} style={{ opacity: shown ? opacity : 0 }} aria-hidden="true" />
      {isVisible(scene) ? (
        <>
          <ViewTools stage={stage} frame={frame} whole="Whole picture" />
          <div class="stage-modes">
            <BlocksControl shown={shown} opacity={opacity} onShown={setShown} onOpacity={setOpacity} />
          </div>
          {tree !== null && <LevelLegend tree={tree} />}
        </>
      ) : (
        <Waiting scene={scene} />
      )}
    </section>
  );
}
