import { useMemo } from "preact/hooks";
import { formatCount } from "../core/format";
import { depthShare, groupByLevel, levelColour } from "../core/overlay";
import type { BlockTree } from "../core/types";

/** Which colour is which level, and how many blocks each has. */
export function LevelLegend({ tree }: { tree: BlockTree }) {
  const groups = useMemo(() => groupByLevel(tree.blocks), [tree]);
  return (
    <dl class="legend" aria-label="Blocks by side in pixels">
      <div class="legend-head">
        <dt>Side</dt>
        <dd>Blocks</dd>
      </div>
      {groups.map((group) => (
        <div key={group.level}>
          <dt>
            <i style={{ background: levelColour(depthShare(group.level, groups)) }} />
            {formatCount(group.side)} px
          </dt>
          <dd>{formatCount(group.count)}</dd>
        </div>
      ))}
    </dl>
  );
}
