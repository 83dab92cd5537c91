/** three.js on a shape's tiles. New versions replace the old without moving the camera. */

import {
  DirectionalLight,
  Group,
  HemisphereLight,
  Mesh,
  MeshBasicMaterial,
  MeshStandardMaterial,
  PerspectiveCamera,
  Raycaster,
  Scene,
  Vector2,
  Vector3,
  WebGLRenderer,
} from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import type { UpAxis } from "../core/framing";
import { clipPlanes, firstPosition, placementOf, turned } from "../core/framing";
import { Latest } from "../core/latest";
import type { Bounds, ShapeTree } from "../core/types";
import { BoxLines } from "./box-lines";
import { Tileset } from "./tileset";

const FIELD_OF_VIEW = 40;
/** Of everything that is drawn, in the viewer's world: blocks may stick far out of the shape. */
const WORLD_RADIUS = 4;
const NEAREST = 0.02;
const FARTHEST = 12;
const GLIDE_MS = 260;
const TURN = Math.PI / 24;
const ZOOM_STEP = 1.25;
const MOST_PIXELS_PER_PIXEL = 2;
/** How often what loads is looked after when nothing moves. */
const LOOK_MS = 100;
/** As in the service's thumbnails. */
const CLAY = 0xded8cd;
/** How long a new version may take to be as fine as the view wants before it is shown as it is. */
const PATIENCE_MS = 6000;
const PART_MISSING = "A part of the shape could not be loaded.";
const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
const GONE = "The graphics card gave up. Open the page again.";

function makeMaterials() {
  const matt = {
    roughness: 0.85,
    // Edges lie on the surface: without a small distance they would be half hidden.
    polygonOffset: true,
    polygonOffsetFactor: 1,
    polygonOffsetUnits: 1,
  };
  const wires = new MeshBasicMaterial({ color: 0x2b2118, wireframe: true, transparent: true, opacity: 0.45 });
  wires.visible = false;
  return {
    clay: new MeshStandardMaterial({ ...matt, color: CLAY }),
    coloured: new MeshStandardMaterial({ ...matt, vertexColors: true }),
    wires,
  };
}

export interface Events {
  onError: (message: string) => void;
  /** Whether tiles of the view are on their way. */
  onBusy: (busy: boolean) => void;
}

/** Where the camera is, and what it looks at. */
interface Pose {
  position: Vector3;
  target: Vector3;
}

interface Glide {
  from: Pose;
  to: Pose;
  start: number;
}

export class ShapeStage {
  private readonly renderer: WebGLRenderer;
  private readonly camera = new PerspectiveCamera(FIELD_OF_VIEW, 1, 0.01, 100);
  private readonly controls: OrbitControls;
  private readonly scene = new Scene();
  /** From the coordinates of the mesh to the viewer's. */
  private readonly world = new Group();
  private readonly mesh = new Group();
  private readonly materials = makeMaterials();
  private readonly observer: ResizeObserver;
  private readonly versions = new Latest<string>((url) => this.load(url));
  private readonly tilesets = new Set<Tileset>();
  private current: Tileset | null = null;
  private boxes: BoxLines | null = null;
  private boxOpacity = 1;
  private up: UpAxis = "y";
  private width = 1;
  private height = 1;
  private glide: Glide | null = null;
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private dirty = true;
  private moved = false;
  private busy = true;
  private destroyed = false;

  /** bounds of the shape in the units of the mesh. */
  constructor(
    private readonly element: HTMLElement,
    private readonly bounds: Bounds,
    private readonly events: Events,
  ) {
    this.renderer = new WebGLRenderer({ antialias: true, alpha: true });
    this.renderer.setClearAlpha(0);
    this.scene.add(this.world, ...this.lights(), this.camera);
    this.world.add(this.mesh);
    this.place();
    const canvas = this.renderer.domElement;
    element.append(canvas);
    this.controls = new OrbitControls(this.camera, canvas);
    this.prepareControls(canvas);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(element);
    this.resize();
  }

  /** Shows the tileset at an address, once it has loaded, in place of the one before. */
  show(url: string): void {
    this.versions.push(url);
  }

  setBlocks(tree: ShapeTree | null): void {
    this.boxes?.dispose();
    this.boxes = tree === null ? null : new BoxLines(tree, this.boxOpacity);
    if (this.boxes !== null) this.mesh.add(this.boxes.group);
    this.redraw();
  }

  setBlockOpacity(opacity: number): void {
    this.boxOpacity = opacity;
    this.boxes?.setOpacity(opacity);
    this.redraw();
  }

  /** Shows the edges of the triangles on the surface. */
  setWires(shown: boolean): void {
    this.materials.wires.visible = shown;
    this.redraw();
  }

  setUp(up: UpAxis): void {
    if (this.up === up) return;
    this.up = up;
    this.place();
    this.home();
  }

  zoomBy(factor: number): void {
    // From where a movement that still goes on will end, or quick presses would be lost.
    const { position, target } = this.glide?.to ?? this.pose();
    const offset = position.clone().sub(target);
    this.moved = true;
    const length = Math.min(FARTHEST, Math.max(NEAREST, offset.length() / factor));
    this.glideTo(offset.setLength(length).add(target), target.clone());
  }

  /** The whole shape, from where it was first seen. */
  home(): void {
    this.moved = false;
    this.glideTo(this.firstPosition(), new Vector3());
  }

  destroy(): void {
    this.destroyed = true;
    this.versions.clear();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.observer.disconnect();
    this.controls.dispose();
    this.boxes?.dispose();
    for (const tileset of this.tilesets) tileset.dispose();
    this.tilesets.clear();
    Object.values(this.materials).forEach((material) => material.dispose());
    this.renderer.dispose();
    // Browsers allow few contexts, and collect forgotten ones late.
    this.renderer.forceContextLoss();
    this.renderer.domElement.remove();
  }

  private async load(url: string): Promise<void> {
    if (this.destroyed) return;
    const previous = this.current;
    const next = new Tileset(url, this.camera, {
      onMesh: (mesh) => this.dress(mesh),
      onChange: () => this.redraw(),
      onError: () => this.events.onError(PART_MISSING),
    });
    this.tilesets.add(next);
    this.mesh.add(next.group);
    next.group.visible = previous === null;
    previous?.hold();
    this.redraw();
    try {
      await this.whenGoodEnough(next);
    } catch (error) {
      this.remove(next);
      previous?.goOn();
      this.setBusy(false);
      throw error;
    }
    if (this.destroyed) return;
    this.current = next;
    next.group.visible = true;
    if (previous !== null) this.remove(previous);
    this.redraw();
  }

  /** Waits for all tiles of the view; on a slow server only for some time, then for anything. */
  private async whenGoodEnough(tileset: Tileset): Promise<void> {
    let ready = false;
    const complete = tileset.ready.then(() => {
      ready = true;
    });
    await Promise.race([complete, pause(PATIENCE_MS)]);
    while (!ready && !tileset.drawn && !this.destroyed) await Promise.race([complete, pause(LOOK_MS)]);
  }

  private remove(tileset: Tileset): void {
    tileset.dispose();
    this.tilesets.delete(tileset);
  }

  /** Gives a tile's mesh the stage's own material, and the edges that may be shown on it. */
  private dress(mesh: Mesh): void {
    const coloured = mesh.geometry.hasAttribute("color");
    mesh.material = coloured ? this.materials.coloured : this.materials.clay;
    const wires = new Mesh(mesh.geometry, this.materials.wires);
    wires.frustumCulled = false;
    mesh.add(wires);
    this.redraw();
  }

  private prepareControls(canvas: HTMLCanvasElement): void {
    const { controls } = this;
    Object.assign(controls, {
      enableDamping: true,
      dampingFactor: 0.09,
      rotateSpeed: 0.9,
      zoomToCursor: true,
      minDistance: NEAREST,
      maxDistance: FARTHEST,
      maxTargetRadius: 1,
    });
    controls.addEventListener("start", () => {
      this.glide = null;
      this.moved = true;
    });
    controls.addEventListener("change", () => this.redraw());
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", "Arrow keys turn the shape, plus and minus zoom, zero shows all of it");
    canvas.addEventListener("keydown", (event) => this.onKey(event));
    canvas.addEventListener("dblclick", (event) => this.approach(event.offsetX, event.offsetY));
    canvas.addEventListener("webglcontextlost", () => {
      if (!this.destroyed) this.events.onError(GONE);
    });
  }

  private onKey(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const turns: Record<string, readonly [number, number]> = {
      ArrowLeft: [-TURN, 0],
      ArrowRight: [TURN, 0],
      ArrowUp: [0, -TURN],
      ArrowDown: [0, TURN],
    };
    const turn = turns[event.key];
    if (turn) this.turn(...turn);
    else if (event.key === "+" || event.key === "=") this.zoomBy(ZOOM_STEP);
    else if (event.key === "-") this.zoomBy(1 / ZOOM_STEP);
    else if (event.key === "0") this.home();
    else return;
    event.preventDefault();
  }

  /** Goes half the way to the point of the surface that is seen there (CSS pixels), and turns around it. */
  private approach(x: number, y: number): void {
    if (this.current === null) return;
    const caster = new Raycaster();
    caster.setFromCamera(new Vector2((x / this.width) * 2 - 1, 1 - (y / this.height) * 2), this.camera);
    const point = caster.intersectObject(this.current.group)[0]?.point;
    if (point === undefined) return;
    this.moved = true;
    this.glideTo(this.camera.position.clone().lerp(point, 0.5), point);
  }

  private turn(azimuth: number, polar: number): void {
    const { position, target } = this.glide?.to ?? this.pose();
    const offset = position.clone().sub(target);
    this.glide = null;
    this.moved = true;
    this.controls.target.copy(target);
    this.camera.position.fromArray(turned(offset.toArray(), azimuth, polar)).add(target);
    this.redraw();
  }

  private glideTo(position: Vector3, target: Vector3): void {
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.glide = { from: this.pose(), to: { position, target }, start: performance.now() - (still ? GLIDE_MS : 0) };
    this.redraw();
  }

  private advance({ from, to, start }: Glide): void {
    const share = Math.min(1, Math.max(0, (performance.now() - start) / GLIDE_MS));
    const eased = 1 - (1 - share) ** 3;
    this.camera.position.lerpVectors(from.position, to.position, eased);
    this.controls.target.lerpVectors(from.target, to.target, eased);
    if (share === 1) this.glide = null;
    this.redraw();
  }

  private setBusy(busy: boolean): void {
    if (busy !== this.busy) this.events.onBusy(busy);
    this.busy = busy;
  }

  private pose(): Pose {
    return { position: this.camera.position.clone(), target: this.controls.target.clone() };
  }

  private firstPosition(): Vector3 {
    return new Vector3(...firstPosition(this.bounds, this.up, FIELD_OF_VIEW, this.width / this.height));
  }

  private place(): void {
    const { centre, scale } = placementOf(this.bounds);
    this.world.scale.setScalar(scale);
    this.world.rotation.x = this.up === "z" ? -Math.PI / 2 : 0;
    this.mesh.position.set(-centre[0], -centre[1], -centre[2]);
  }

  /** Light from the sky and, with the camera, from over the left shoulder. */
  private lights(): HemisphereLight[] {
    const headlight = new DirectionalLight(0xfffaf2, 2.1);
    headlight.position.set(-0.5, 0.7, 1);
    headlight.target.position.set(0, 0, 0);
    this.camera.add(headlight, headlight.target);
    return [new HemisphereLight(0xf4f6ff, 0x6b5a48, 1.5)];
  }

  private resize(): void {
    this.width = Math.max(1, this.element.clientWidth);
    this.height = Math.max(1, this.element.clientHeight);
    this.renderer.setPixelRatio(Math.min(devicePixelRatio, MOST_PIXELS_PER_PIXEL));
    this.renderer.setSize(this.width, this.height);
    this.camera.aspect = this.width / this.height;
    if (!this.moved) {
      this.glide = null;
      this.controls.target.set(0, 0, 0);
      this.camera.position.copy(this.firstPosition());
    }
    // At once: a canvas that was resized is empty.
    this.dirty = true;
    this.draw();
  }

  private redraw(): void {
    this.dirty = true;
    this.schedule();
  }

  private schedule(): void {
    if (this.frame !== 0 || this.destroyed) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  private draw(): void {
    if (this.glide !== null) this.advance(this.glide);
    this.controls.update();
    const planes = clipPlanes(this.camera.position.length(), WORLD_RADIUS);
    Object.assign(this.camera, planes);
    this.camera.updateProjectionMatrix();
    this.scene.updateMatrixWorld();
    for (const tileset of this.tilesets) tileset.update(this.width, this.height);
    if (this.dirty) {
      this.dirty = false;
      this.renderer.render(this.scene, this.camera);
    }
    clearTimeout(this.timer);
    const busy = [...this.tilesets].some((tileset) => tileset.loading);
    if (busy) this.timer = setTimeout(() => this.schedule(), LOOK_MS);
    // Before the first tileset, all is still to come.
    if (this.tilesets.size > 0) this.setBusy(busy);
  }
}
