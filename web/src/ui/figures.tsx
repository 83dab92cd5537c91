import { formatBytes, formatCompact, formatCount, formatPixels, formatSeconds } from "../core/format";
import { fractionDone, isActive, statusLabel } from "../core/status";
import type { Scene } from "../core/types";

/** Where the fit stands: status, the quality reached, and how far it is. */
export function FitHead({ scene }: { scene: Scene }) {
  const psnr = scene.progress?.psnr ?? null;
  return (
    <section class="fit-head">
      <p class={`status ${scene.status}`} role="status">{statusLabel(scene)}</p>
      {psnr !== null && (
        <p class="psnr">
          {psnr.toFixed(1)}
          <abbr title="decibels of peak signal-to-noise ratio, against the original at full size">dB</abbr>
        </p>
      )}
      {isActive(scene.status) && (
        <progress max={1} value={scene.progress ? fractionDone(scene) : undefined} aria-label="Fit" />
      )}
    </section>
  );
}

function rowsOf(scene: Scene): (readonly [label: string, value: string])[] {
  const rows: (readonly [string, string])[] = [];
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
