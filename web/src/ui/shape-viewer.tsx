import { useEffect, useRef, useState } from "preact/hooks";
import { getShapeTree, messageOf, tilesetOf } from "../core/api";
import type { UpAxis } from "../core/framing";
import { isVisible, titleOf } from "../core/status";
import type { ShapeScene, ShapeTree } from "../core/types";
import { UpIcon, WiresIcon } from "./icons";
import { ShapeLegend } from "./legend";
import type { ShapeStage } from "./shape-stage";
import { BlocksControl, ViewTools, Waiting } from "./view-tools";

type OnError = (message: string) => void;

/** three.js, loaded when the first shape is opened, on the newest version of the scene. */
function useStage(scene: ShapeScene, onError: OnError) {
  const element = useRef<HTMLDivElement>(null);
  const [stage, setStage] = useState<ShapeStage | null>(null);
  const [busy, setBusy] = useState(true);
  const visible = isVisible(scene);
  const url = tilesetOf(scene);
  useEffect(() => {
    if (!visible) return;
    let left = false;
    let made: ShapeStage | null = null;
    const make = async () => {
      const { ShapeStage } = await import("./shape-stage");
      if (left || element.current === null) return;
      made = new ShapeStage(element.current, scene.shape.bounds, { onError, onBusy: setBusy });
      setStage(made);
    };
    make().catch((reason: unknown) => onError(messageOf(reason)));
    return () => {
      left = true;
      made?.destroy();
    };
  }, [visible]);
  useEffect(() => {
    if (stage !== null && url !== null) stage.show(url);
  }, [stage, url]);
  return { element, stage, busy };
}

/** The scene's blocks while they are wanted, kept up with the scene's version. */
function useBlocks(scene: ShapeScene, wanted: boolean, onError: OnError): ShapeTree | null {
  const [tree, setTree] = useState<ShapeTree | null>(null);
  useEffect(() => {
    if (!wanted || !isVisible(scene)) return;
    let left = false;
    getShapeTree(scene).then(
      (loaded) => left || setTree(loaded),
      (reason: unknown) => onError(messageOf(reason)),
    );
    return () => {
      left = true;
    };
  }, [wanted, scene.version]);
  return wanted ? tree : null;
}

function Mode(props: { name: string; title: string; pressed: boolean; icon: typeof UpIcon; onClick: () => void }) {
  return (
    <button class="tool wide" aria-pressed={props.pressed} title={props.title} onClick={props.onClick}>
      <props.icon /> {props.name}
    </button>
  );
}

export function ShapeViewer({ scene, onError }: { scene: ShapeScene; onError: OnError }) {
  const frame = useRef<HTMLElement>(null);
  const [blocksShown, setBlocksShown] = useState(false);
  const [opacity, setOpacity] = useState(0.8);
  const [wires, setWires] = useState(false);
  const [up, setUp] = useState<UpAxis>("y");
  const { element, stage, busy } = useStage(scene, onError);
  const tree = useBlocks(scene, blocksShown, onError);
  useEffect(() => stage?.setBlocks(tree), [stage, tree]);
  useEffect(() => stage?.setBlockOpacity(opacity), [stage, opacity]);
  useEffect(() => stage?.setWires(wires), [stage, wires]);
  useEffect(() => stage?.setUp(up), [stage, up]);
  const shown = isVisible(scene);
  return (
    <section class="stage" ref={frame} aria-label={`Shape: ${titleOf(scene)}`} aria-busy={shown && busy}>
      <div class="stage-shape" ref={element} />
      {shown ? (
        <>
          <ViewTools stage={stage} frame={frame} whole="Whole shape" />
          <div class="stage-modes">
            <Mode
              name="Mesh"
              title="Show the triangles of the surface"
              icon={WiresIcon}
              pressed={wires}
              onClick={() => setWires(!wires)}
            />
            <Mode
              name="Z up"
              title="Stand the shape on its z axis, as meshes for printing are"
              icon={UpIcon}
              pressed={up === "z"}
              onClick={() => setUp(up === "z" ? "y" : "z")}
            />
            <BlocksControl
              shown={blocksShown}
              opacity={opacity}
              onShown={setBlocksShown}
              onOpacity={setOpacity}
            />
          </div>
          {tree !== null && <ShapeLegend tree={tree} />}
        </>
      ) : (
        <Waiting scene={scene} />
      )}
    </section>
  );
}
