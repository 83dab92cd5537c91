import {
  formatBytes,
  formatCompact,
  formatCount,
  formatLength,
  formatPixels,
  formatSeconds,
} from "../core/format";
import { MEASURES, qualityOf } from "../core/quality";
import { fractionDone, isActive, statusLabel, timeLeft } from "../core/status";
import type { Scene, ShapeFacts } from "../core/types";

/** Where the fit stands: status, the quality reached, and how far it is. */
export function FitHead({ scene }: { scene: Scene }) {
  const quality = qualityOf(scene.progress);
  const measure = MEASURES[scene.kind];
  const left = timeLeft(scene);
  return (
    <section class="fit-head">
      <p class={`status ${scene.status}`} role="status">{statusLabel(scene)}</p>
      {quality !== null && (
        <p class="quality">
          {measure.format(quality)}
          <abbr title={measure.meaning}>{measure.unit}</abbr>
        </p>
      )}
      {isActive(scene.status) && (
        <progress max={1} value={scene.progress ? fractionDone(scene) : undefined} aria-label="Fit" />
      )}
      {left !== null && <p class="time-left">{left}</p>}
    </section>
  );
}

type Row = readonly [label: string, value: string];

function shapeRows({ vertices, faces, bounds: [low, high], colours }: ShapeFacts): Row[] {
  const rows: Row[] = [];
  if (vertices !== null) rows.push(["Vertices", formatCount(vertices)]);
  if (faces !== null) rows.push(["Faces", formatCount(faces)]);
  const sides = high.map((value, axis) => formatLength(value - (low[axis] ?? 0)));
  rows.push(["Size", sides.join(" × ")]);
  if (colours) rows.push(["Colours", "Yes"]);
  return rows;
}

function rowsOf(scene: Scene): Row[] {
  const rows: Row[] = scene.kind === "shape" ? shapeRows(scene.shape) : [];
  const { progress, width, height } = scene;
  if (width && height) rows.push(["Picture", formatPixels(width, height)]);
  if (progress && progress.steps > 0) {
    rows.push(["Steps", `${formatCount(progress.step)} of ${formatCount(progress.steps)}`]);
  }
  if (progress?.seconds) rows.push(["Time", formatSeconds(progress.seconds)]);
  if (progress && progress.blocks > 0) rows.push(["Blocks", formatCount(progress.blocks)]);
  if (progress && progress.parameters > 0) rows.push(["Parameters", formatCompact(progress.parameters)]);
  if (progress && progress.bytes > 0) rows.push(["Field", formatBytes(progress.bytes)]);
  if (scene.bytes_original) rows.push(["Original", formatBytes(scene.bytes_original)]);
  if (scene.preset) rows.push(["Quality", `${scene.preset}, ${scene.encoder ?? "default"} encoder`]);
  return rows;
}

export function Figures({ scene }: { scene: Scene }) {
  return (
    <dl class="figures">
      {rowsOf(scene).map(([label, value]) => (
        <div key={label}>
          <dt>{label}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
