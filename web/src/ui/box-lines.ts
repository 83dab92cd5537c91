/** The blocks of a shape as lines in three dimensions: every edge of every block, one draw call per level. */

import {
  BufferAttribute,
  Color,
  Group,
  InstancedBufferAttribute,
  InstancedBufferGeometry,
  LineSegments,
  ShaderMaterial,
  SRGBColorSpace,
} from "three";
import { boxesByLevel, cubeEdges } from "../core/boxes";
import type { LevelBoxes } from "../core/boxes";
import { depthShare, levelRgb } from "../core/overlay";
import type { ShapeTree } from "../core/types";

const VERTEX = `
attribute vec4 box;
void main() {
  gl_Position = projectionMatrix * modelViewMatrix * vec4(box.xyz + position * box.w, 1.0);
}`;

const FRAGMENT = `
uniform vec3 colour;
uniform float opacity;
void main() {
  gl_FragColor = vec4(colour, opacity);
  #include <colorspace_fragment>
}`;

/** How much of a line is seen through the surface. */
const BEHIND = 0.12;

function material(share: number, behind: boolean): ShaderMaterial {
  const [red, green, blue] = levelRgb(share);
  const colour = new Color().setRGB(red / 255, green / 255, blue / 255, SRGBColorSpace);
  return new ShaderMaterial({
    vertexShader: VERTEX,
    fragmentShader: FRAGMENT,
    uniforms: { colour: { value: colour }, opacity: { value: 1 } },
    transparent: true,
    depthTest: !behind,
    depthWrite: false,
  });
}

function geometryOf({ boxes, count }: LevelBoxes): InstancedBufferGeometry {
  const geometry = new InstancedBufferGeometry();
  geometry.setAttribute("position", new BufferAttribute(cubeEdges(), 3));
  geometry.setAttribute("box", new InstancedBufferAttribute(boxes, 4));
  geometry.instanceCount = count;
  return geometry;
}

export class BoxLines {
  /** In the coordinates of the mesh. */
  readonly group = new Group();
  private readonly lines: { line: LineSegments<InstancedBufferGeometry, ShaderMaterial>; behind: boolean }[] = [];

  constructor(tree: ShapeTree, opacity: number) {
    const origin = tree.bounds[0];
    this.group.position.set(...origin);
    const levels = boxesByLevel(tree.blocks, origin);
    for (const level of levels) {
      const geometry = geometryOf(level);
      for (const behind of [true, false]) {
        const line = new LineSegments(geometry, material(depthShare(level.level, levels), behind));
        // The bounds of one box are not those of all.
        line.frustumCulled = false;
        line.renderOrder = behind ? 1 : 2;
        this.lines.push({ line, behind });
        this.group.add(line);
      }
    }
    this.setOpacity(opacity);
  }

  setOpacity(opacity: number): void {
    for (const { line, behind } of this.lines) {
      const uniform = line.material.uniforms["opacity"];
      if (uniform) uniform.value = opacity * (behind ? BEHIND : 1);
    }
  }

  dispose(): void {
    for (const { line } of this.lines) {
      line.geometry.dispose();
      line.material.dispose();
    }
    this.group.removeFromParent();
  }
}
