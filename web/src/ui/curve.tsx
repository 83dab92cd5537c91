import { useState } from "preact/hooks";
import type { Box, Chart, ChartAxis } from "../core/chart";
import { layoutChart, nearestPoint } from "../core/chart";
import type { CurvePoint } from "../core/events";
import { formatCompact, formatCount, formatSeconds } from "../core/format";
import { formatQuality, MEASURES } from "../core/quality";
import type { Kind } from "../core/types";

const WIDTH = 320;
const HEIGHT = 168;
/** Right of the labels: shares have more digits than decibels. */
const BOXES: Record<Kind, Box> = { image: boxFrom(26), shape: boxFrom(40) };
const BOTTOM = BOXES.image.top + BOXES.image.height;

function boxFrom(left: number): Box {
  return { left, top: 10, width: 310 - left, height: 134 };
}

const AXES: readonly { value: ChartAxis; label: string }[] = [
  { value: "seconds", label: "seconds" },
  { value: "step", label: "steps" },
];

function Grid({ chart, box }: { chart: Chart; box: Box }) {
  return (
    <g class="curve-grid">
      {chart.yTicks.map(({ value, at }) => (
        <g key={value}>
          <line x1={box.left} x2={box.left + box.width} y1={at} y2={at} />
          <text x={box.left - 6} y={at + 3.5} text-anchor="end">{value}</text>
        </g>
      ))}
      {chart.xTicks.map(({ value, at }) => (
        <text key={value} x={at} y={BOTTOM + 16} text-anchor="middle">{formatCompact(value)}</text>
      ))}
    </g>
  );
}

function describe(kind: Kind, { quality, seconds, step }: CurvePoint): string {
  return `${formatQuality(kind, quality)} after ${formatSeconds(seconds)}, step ${formatCount(step)}`;
}

function AxisChoice({ axis, onChange }: { axis: ChartAxis; onChange: (axis: ChartAxis) => void }) {
  return (
    <select
      aria-label="Horizontal axis"
      value={axis}
      onChange={(event) => onChange(event.currentTarget.value as ChartAxis)}
    >
      {AXES.map(({ value, label }) => <option key={value} value={value}>by {label}</option>)}
    </select>
  );
}

/** Share of the plot's width under the pointer, 0 to 1. */
function pointedShare(event: PointerEvent & { currentTarget: SVGSVGElement }, box: Box): number {
  const frame = event.currentTarget.getBoundingClientRect();
  const x = ((event.clientX - frame.left) / frame.width) * WIDTH;
  return Math.min(1, Math.max(0, (x - box.left) / box.width));
}

/** Quality over the fit; nothing to see before two measurements. */
export function QualityCurve({ kind, points }: { kind: Kind; points: readonly CurvePoint[] }) {
  const [axis, setAxis] = useState<ChartAxis>("seconds");
  const [share, setShare] = useState<number | null>(null);
  const last = points.at(-1);
  if (last === undefined || points.length < 2) return null;
  const box = BOXES[kind];
  const chart = layoutChart(points, kind, axis, box);
  const marked = (share === null ? null : nearestPoint(points, axis, share)) ?? last;
  const at = chart.place(marked);
  return (
    <figure class="curve">
      <figcaption>
        <h2>{MEASURES[kind].heading}</h2>
        <AxisChoice axis={axis} onChange={setAxis} />
      </figcaption>
      <svg
        viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
        role="img"
        aria-label={describe(kind, last)}
        onPointerMove={(event) => setShare(pointedShare(event, box))}
        onPointerLeave={() => setShare(null)}
      >
        <Grid chart={chart} box={box} />
        <path class="curve-area" d={chart.area} />
        <path class="curve-line" d={chart.line} />
        {share !== null && <line class="curve-cursor" x1={at.x} x2={at.x} y1={box.top} y2={BOTTOM} />}
        <circle class="curve-mark" cx={at.x} cy={at.y} r={3.5} />
      </svg>
      <p class="curve-read">{describe(kind, marked)}</p>
    </figure>
  );
}
