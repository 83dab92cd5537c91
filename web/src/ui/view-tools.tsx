/** What lies over every viewer: buttons, and words while there is nothing to see. */

import type { RefObject } from "preact";
import type { Scene } from "../core/types";
import { FitIcon, FullIcon, Logo, MinusIcon, PlusIcon, TreeIcon } from "./icons";

const ZOOM_STEP = 1.6;

/** What both stages can do. */
interface Zoomable {
  zoomBy: (factor: number) => void;
  home: () => void;
}

interface Props {
  stage: Zoomable | null;
  frame: RefObject<HTMLElement | null>;
  /** What the button that shows everything is called. */
  whole: string;
}

export function ViewTools({ stage, frame, whole }: Props) {
  const toggleFull = () =>
    document.fullscreenElement ? document.exitFullscreen() : frame.current?.requestFullscreen();
  return (
    <div class="view-tools" role="toolbar" aria-label="View">
      <button class="tool" aria-label="Zoom in" onClick={() => stage?.zoomBy(ZOOM_STEP)}><PlusIcon /></button>
      <button class="tool" aria-label="Zoom out" onClick={() => stage?.zoomBy(1 / ZOOM_STEP)}><MinusIcon /></button>
      <button class="tool" aria-label={whole} onClick={() => stage?.home()}><FitIcon /></button>
      {document.fullscreenEnabled && (
        <button class="tool" aria-label="Full screen" onClick={() => void toggleFull()}><FullIcon /></button>
      )}
    </div>
  );
}

export function BlocksControl(props: {
  shown: boolean;
  opacity: number;
  onShown: (shown: boolean) => void;
  onOpacity: (opacity: number) => void;
}) {
  return (
    <>
      <button
        class="tool wide"
        aria-pressed={props.shown}
        onClick={() => props.onShown(!props.shown)}
        title="Show how the field divides what it shows"
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
    </>
  );
}

const WORDS = {
  image: { coming: "The first picture is on its way", none: "There is no picture of this scene." },
  shape: { coming: "The first surface is on its way", none: "There is no surface of this scene." },
};

export function Waiting({ scene }: { scene: Scene }) {
  const words = WORDS[scene.kind];
  const coming = scene.status === "queued" ? "Waiting for its turn" : words.coming;
  const resting = scene.status !== "queued" && scene.status !== "fitting";
  return (
    <div class={resting ? "stage-waiting" : "stage-waiting alive"}>
      <Logo />
      <p>{resting ? words.none : coming}</p>
    </div>
  );
}
