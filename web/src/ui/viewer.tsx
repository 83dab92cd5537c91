import type { RefObject } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { getImageInfo, getTree, messageOf } from "../core/api";
import { isVisible, titleOf } from "../core/status";
import type { BlockTree, Scene } from "../core/types";
import { FitIcon, FullIcon, Logo, MinusIcon, PlusIcon, TreeIcon } from "./icons";
import { LevelLegend } from "./legend";
import type { Stage } from "./stage";
import { TreeCanvas } from "./tree-canvas";

const ZOOM_STEP = 1.6;

/** OpenSeadragon, loaded when the first picture is opened, on the newest version of the scene. */
function useStage(scene: Scene, onError: (message: string) => void) {
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
function useTree(scene: Scene, wanted: boolean, onError: (message: string) => void): BlockTree | null {
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

function TreeControl(props: {
  shown: boolean;
  opacity: number;
  onShown: (shown: boolean) => void;
  onOpacity: (opacity: number) => void;
}) {
  return (
    <div class="tree-control">
      <button
        class="tool wide"
        aria-pressed={props.shown}
        onClick={() => props.onShown(!props.shown)}
        title="Show how the field divides the picture"
      >
        <TreeIcon /> Blocks
      </button>
      {props.shown && (
        <label class="tool">
          <span class="visually-hidden">Opacity of the blocks</span>
          <input
            type="range"
            min={0.1}
            max={1}
            step={0.05}
            value={props.opacity}
            onInput={(event) => props.onOpacity(event.currentTarget.valueAsNumber)}
          />
        </label>
      )}
    </div>
  );
}

function ViewTools({ stage, frame }: { stage: Stage | null; frame: RefObject<HTMLElement | null> }) {
  const toggleFull = () =>
    document.fullscreenElement ? document.exitFullscreen() : frame.current?.requestFullscreen();
  return (
    <div class="view-tools" role="toolbar" aria-label="View">
      <button class="tool" aria-label="Zoom in" onClick={() => stage?.zoomBy(ZOOM_STEP)}><PlusIcon /></button>
      <button class="tool" aria-label="Zoom out" onClick={() => stage?.zoomBy(1 / ZOOM_STEP)}><MinusIcon /></button>
      <button class="tool" aria-label="Whole picture" onClick={() => stage?.home()}><FitIcon /></button>
      {document.fullscreenEnabled && (
        <button class="tool" aria-label="Full screen" onClick={() => void toggleFull()}><FullIcon /></button>
      )}
    </div>
  );
}

function Waiting({ scene }: { scene: Scene }) {
  const words = scene.status === "queued" ? "Waiting for its turn" : "The first picture is on its way";
  const resting = scene.status === "failed" || scene.status === "cancelled";
  return (
    <div class={resting ? "stage-waiting" : "stage-waiting alive"}>
      <Logo />
      <p>{resting ? "There is no picture of this scene." : words}</p>
    </div>
  );
}

export function Viewer({ scene, onError }: { scene: Scene; onError: (message: string) => void }) {
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
          <ViewTools stage={stage} frame={frame} />
          <TreeControl shown={shown} opacity={opacity} onShown={setShown} onOpacity={setOpacity} />
          {tree !== null && <LevelLegend tree={tree} />}
        </>
      ) : (
        <Waiting scene={scene} />
      )}
    </section>
  );
}
