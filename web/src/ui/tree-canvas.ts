/** Draws the block tree on a canvas that lies over the picture. */

import type { LevelBlocks, View } from "../core/overlay";
import {
  depthShare,
  forEachVisible,
  groupByLevel,
  isOutlined,
  levelColour,
  lineWidth,
} from "../core/overlay";
import type { BlockTree } from "../core/types";

/** A dark edge beside each line, for light pictures. */
const HALO = "rgb(0 0 0 / 0.3)";
/** Side in CSS pixels: many small halos cost ten times their lines, and darken the picture. */
const SMALLEST_WITH_HALO = 24;

export class TreeCanvas {
  private tree: BlockTree | null = null;
  private groups: LevelBlocks[] = [];
  private view: View | null = null;

  constructor(private readonly canvas: HTMLCanvasElement) {}

  setTree(tree: BlockTree | null): void {
    this.tree = tree;
    this.groups = tree === null ? [] : groupByLevel(tree.blocks);
    this.draw();
  }

  /** view in CSS pixels. */
  setView(view: View): void {
    this.view = view;
    if (this.tree !== null) this.draw();
  }

  private draw(): void {
    const context = this.canvas.getContext("2d");
    if (context === null || this.view === null) return;
    const view = this.fitCanvas(this.view);
    context.clearRect(0, 0, view.width, view.height);
    for (const group of this.groups) this.drawLevel(context, group, view);
  }

  /** Gives the canvas the screen's own pixels; returns the view in them. */
  private fitCanvas(view: View): View {
    const ratio = devicePixelRatio;
    const width = Math.round(view.width * ratio);
    const height = Math.round(view.height * ratio);
    if (this.canvas.width !== width) this.canvas.width = width;
    if (this.canvas.height !== height) this.canvas.height = height;
    return { x: view.x * ratio, y: view.y * ratio, scale: view.scale * ratio, width, height };
  }

  private drawLevel(context: CanvasRenderingContext2D, group: LevelBlocks, view: View): void {
    if (this.tree === null) return;
    const share = depthShare(group.level, this.groups);
    const side = group.side * view.scale;
    const width = lineWidth(share, side, devicePixelRatio);
    // A line of odd width is sharp when its middle is the middle of a pixel.
    const shift = width % 2 === 0 ? 0 : 0.5;
    const path = new Path2D();
    forEachVisible(group, this.tree, view, (left, top, right, bottom) =>
      path.rect(left + shift, top + shift, right - left, bottom - top),
    );
    if (!isOutlined(group, view)) {
      context.fillStyle = levelColour(share, 0.6);
      context.fill(path);
      return;
    }
    if (side >= SMALLEST_WITH_HALO * devicePixelRatio) {
      context.lineWidth = width + 2;
      context.strokeStyle = HALO;
      context.stroke(path);
    }
    context.lineWidth = width;
    context.strokeStyle = levelColour(share);
    context.stroke(path);
  }
}
