import { useMemo } from "preact/hooks";
import { boxesByLevel } from "../core/boxes";
import { formatCount, formatLength } from "../core/format";
import { depthShare, groupByLevel, levelColour } from "../core/overlay";
import type { BlockTree, ShapeTree } from "../core/types";

interface Level {
  level: number;
  side: number;
  count: number;
}

/** Which colour is which level, and how many blocks each has. */
function Legend(props: { label: string; groups: readonly Level[]; format: (side: number) => string }) {
  const { groups } = props;
  return (
    <dl class="legend" aria-label={props.label}>
      <div class="legend-head">
        <dt>Side</dt>
        <dd>Blocks</dd>
      </div>
      {groups.map((group) => (
        <div key={group.level}>
          <dt>
            <i style={{ background: levelColour(depthShare(group.level, groups)) }} />
            {props.format(group.side)}
          </dt>
          <dd>{formatCount(group.count)}</dd>
        </div>
      ))}
    </dl>
  );
}

export function LevelLegend({ tree }: { tree: BlockTree }) {
  const groups = useMemo(() => groupByLevel(tree.blocks), [tree]);
  return <Legend label="Blocks by side in pixels" groups={groups} format={(side) => `${formatCount(side)} px`} />;
}

export function ShapeLegend({ tree }: { tree: ShapeTree }) {
  const groups = useMemo(() => boxesByLevel(tree.blocks, tree.bounds[0]), [tree]);
  return <Legend label="Blocks by side" groups={groups} format={formatLength} />;
}
