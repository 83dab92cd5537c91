import { useEffect, useRef, useState } from "preact/hooks";
import type { Preset } from "../core/types";
import { Logo, UploadIcon } from "./icons";

const ACCEPTED = "image/jpeg,image/png,image/webp,image/tiff,.ply,.stl,.obj,.off,.glb,.acorn";

const PRESETS: readonly { value: Preset; label: string; hint: string }[] = [
  { value: "draft", label: "Draft", hint: "A quick first look" },
  { value: "standard", label: "Standard", hint: "Right for most things" },
  { value: "fine", label: "Fine", hint: "All the detail, slowest" },
];

interface Props {
  /** Nothing is shown below yet: more room, and words of welcome. */
  welcoming: boolean;
  onFiles: (files: readonly File[], preset: Preset) => void;
}

const holdsFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;

/** True while files are dragged over the page; a drop anywhere on it counts. */
function usePageDrop(onDrop: (files: readonly File[]) => void): boolean {
  const [over, setOver] = useState(false);
  const latest = useRef(onDrop);
  latest.current = onDrop;
  useEffect(() => {
    const enter = (event: DragEvent) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const leave = (event: DragEvent) => event.relatedTarget === null && setOver(false);
    const drop = (event: DragEvent) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setOver(false);
      latest.current([...(event.dataTransfer?.files ?? [])]);
    };
    const stop = new AbortController();
    addEventListener("dragenter", enter, stop);
    addEventListener("dragover", enter, stop);
    addEventListener("dragleave", leave, stop);
    addEventListener("drop", drop, stop);
    return () => stop.abort();
  }, []);
  return over;
}

function PresetChoice({ preset, onChange }: { preset: Preset; onChange: (preset: Preset) => void }) {
  return (
    <fieldset class="presets">
      <legend>Quality</legend>
      {PRESETS.map(({ value, label, hint }) => (
        <label key={value}>
          <input
            type="radio"
            name="preset"
            value={value}
            checked={value === preset}
            onChange={() => onChange(value)}
          />
          <span class="preset-label">{label}</span>
          <span class="preset-hint">{hint}</span>
        </label>
      ))}
    </fieldset>
  );
}

export function Dropzone({ welcoming, onFiles }: Props) {
  const [preset, setPreset] = useState<Preset>("standard");
  const accept = (files: readonly File[]) => files.length > 0 && onFiles(files, preset);
  const over = usePageDrop(accept);
  const onChosen = (input: HTMLInputElement) => {
    accept([...(input.files ?? [])]);
    input.value = "";
  };
  return (
    <section class={`dropzone${welcoming ? " welcoming" : ""}${over ? " over" : ""}`}>
      <div class="dropzone-text">
        {welcoming && <Logo />}
        <h1>{welcoming ? "Bring an image or a shape" : "Scenes"}</h1>
        <p>
          Drop a picture or a mesh anywhere on this page. It becomes a small neural field, as detailed
          as the original is in each place, to be looked at from afar and from very near.
        </p>
        <div class="chooser">
          <label class="button primary">
            <UploadIcon />
            Choose a file
            <input
              type="file"
              class="visually-hidden"
              accept={ACCEPTED}
              multiple
              onChange={(event) => onChosen(event.currentTarget)}
            />
          </label>
          <span class="hint">JPEG, PNG, WebP or TIFF; PLY, STL, OBJ, OFF or GLB; .acorn</span>
        </div>
      </div>
      <PresetChoice preset={preset} onChange={setPreset} />
      {over && <div class="drop-veil">Drop to begin</div>}
    </section>
  );
}
