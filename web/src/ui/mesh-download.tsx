import { useEffect, useRef, useState } from "preact/hooks";
import { getMesh, messageOf, titleFromFileName } from "../core/api";
import { titleOf } from "../core/status";
import type { MeshFormat, ShapeScene } from "../core/types";
import { DownloadIcon, StopIcon } from "./icons";
import { Notice } from "./notice";

const RESOLUTIONS = [128, 256, 512, 1024] as const;
const FORMATS: readonly { value: MeshFormat; label: string }[] = [
  { value: "glb", label: "GLB" },
  { value: "ply", label: "PLY" },
  { value: "stl", label: "STL" },
  { value: "obj", label: "OBJ" },
];

/** Hands a file to the browser, as if a link to it had been followed. */
function save(file: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  // The browser has to have begun before the address goes.
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The surface as a mesh: made on the server when asked for, which takes a while. */
export function MeshDownload({ scene }: { scene: ShapeScene }) {
  const [resolution, setResolution] = useState<number>(256);
  const [format, setFormat] = useState<MeshFormat>("glb");
  const [making, setMaking] = useState<AbortController | null>(null);
  const [error, setError] = useState<string | null>(null);
  const current = useRef(making);
  current.current = making;
  useEffect(() => () => current.current?.abort(), []);
  const make = () => {
    const control = new AbortController();
    setMaking(control);
    setError(null);
    getMesh(scene, resolution, format, control.signal)
      .then((file) => save(file, `${titleFromFileName(titleOf(scene))}-${resolution}.${format}`))
      .catch((reason: unknown) => control.signal.aborted || setError(messageOf(reason)))
      .finally(() => setMaking(null));
  };
  return (
    <section class="mesh-download">
      <h2>Mesh</h2>
      <div class="mesh-choices">
        <select
          aria-label="Cells along the longest side"
          value={resolution}
          onChange={(event) => setResolution(Number(event.currentTarget.value))}
        >
          {RESOLUTIONS.map((value) => <option key={value} value={value}>{value} cells</option>)}
        </select>
        <select
          aria-label="Format"
          value={format}
          onChange={(event) => setFormat(event.currentTarget.value as MeshFormat)}
        >
          {FORMATS.map(({ value, label }) => <option key={value} value={value}>{label}</option>)}
        </select>
        {making === null ? (
          <button class="button" onClick={make}><DownloadIcon /> Make</button>
        ) : (
          <button class="button" onClick={() => making.abort()}><StopIcon /> Stop</button>
        )}
      </div>
      <p class="hint" role="status">
        {making === null ? "Cells along the longest side. More are finer, larger and slower." : "Being made. This may take a minute."}
      </p>
      {error !== null && <Notice message={error} />}
    </section>
  );
}
