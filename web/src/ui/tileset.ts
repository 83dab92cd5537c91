/** One version of a shape as 3D Tiles: what is loaded follows the camera and the error on screen. */

import { DownloadPriorityQueue, LRUCache, PriorityQueue } from "3d-tiles-renderer/core";
import { ImplicitTilingPlugin } from "3d-tiles-renderer/core/plugins";
import { TilesRenderer } from "3d-tiles-renderer/three";
import type { Group, Mesh, Object3D, PerspectiveCamera } from "three";
import { patientFetch } from "../core/api";

/** Pixels that a cell of a tile may measure on screen before finer tiles are wanted. */
const ERROR_TARGET = 6;
/** Browsers allow six connections to a server; the events and other pictures need some of them. */
const DOWNLOADS = 4;
const PARSERS = 2;

/** How tiles are asked for: with patience. */
class Requests {
  readonly name = "REQUESTS";
  /** Before the other plugins. */
  readonly priority = -1;
  private held = false;
  private waiting: (() => void)[] = [];

  async fetchData(url: string, options: RequestInit): Promise<Response> {
    if (this.held) await this.release(options.signal ?? null);
    return patientFetch(url, options);
  }

  hold(): void {
    this.held = true;
  }

  goOn(): void {
    this.held = false;
    this.waiting.splice(0).forEach((resolve) => resolve());
  }

  private release(signal: AbortSignal | null): Promise<void> {
    return new Promise((resolve, reject) => {
      this.waiting.push(resolve);
      signal?.addEventListener("abort", () => reject(signal.reason));
    });
  }
}

interface Listener {
  /** A mesh has come; its material is to be chosen. */
  onMesh: (mesh: Mesh) => void;
  /** What is to be drawn has changed, or may with the next update. */
  onChange: () => void;
  onError: (error: Error) => void;
}

const isMesh = (object: Object3D): object is Mesh => "isMesh" in object && object.isMesh === true;

export class Tileset {
  readonly group: Group;
  /** Resolves when all that the view wants has come, the first time; rejects when there is no tileset. */
  readonly ready: Promise<void>;
  /** Something is still on its way. */
  loading = true;
  private readonly tiles: TilesRenderer;
  private readonly requests = new Requests();

  constructor(
    url: string,
    private readonly camera: PerspectiveCamera,
    listener: Listener,
  ) {
    this.tiles = new TilesRenderer(url);
    this.group = this.tiles.group;
    this.tiles.errorTarget = ERROR_TARGET;
    this.tiles.registerPlugin(this.requests);
    this.tiles.registerPlugin(new ImplicitTilingPlugin());
    this.useOwnQueues();
    this.tiles.setCamera(camera);
    this.tiles.addEventListener("load-model", ({ scene }) => {
      const meshes: Mesh[] = [];
      scene.traverse((object) => isMesh(object) && meshes.push(object));
      meshes.forEach(listener.onMesh);
    });
    this.tiles.addEventListener("needs-update", listener.onChange);
    this.tiles.addEventListener("tile-visibility-change", listener.onChange);
    this.ready = new Promise((resolve, reject) => {
      this.tiles.addEventListener("tiles-load-start", () => {
        this.loading = true;
      });
      this.tiles.addEventListener("tiles-load-end", () => {
        this.loading = false;
        resolve();
      });
      this.tiles.addEventListener("load-error", ({ tile, error }) => {
        listener.onChange();
        listener.onError(error);
        if (tile === null) reject(error);
      });
    });
    this.ready.catch(() => undefined);
  }

  /** There is something of it to be seen. */
  get drawn(): boolean {
    return this.tiles.visibleTiles.size > 0;
  }

  /** Chooses and asks for the tiles of the view; width and height in CSS pixels. */
  update(width: number, height: number): void {
    this.tiles.setResolution(this.camera, width, height);
    this.tiles.update();
  }

  /** Asks for nothing more: the server has a newer version, and nothing of the two shall be mixed. */
  hold(): void {
    this.requests.hold();
  }

  goOn(): void {
    this.requests.goOn();
  }

  dispose(): void {
    this.tiles.dispose();
  }

  /** What several tilesets share by default cannot be given back as a whole. */
  private useOwnQueues(): void {
    const { downloadQueue, parseQueue, lruCache } = this.tiles;
    const downloads = new DownloadPriorityQueue();
    downloads.maxJobsPerOrigin = DOWNLOADS;
    downloads.priorityCallback = downloadQueue.priorityCallback;
    const parses = new PriorityQueue();
    parses.maxJobs = PARSERS;
    parses.priorityCallback = parseQueue.priorityCallback;
    const cache = new LRUCache();
    cache.unloadPriorityCallback = lruCache.unloadPriorityCallback;
    Object.assign(this.tiles, { downloadQueue: downloads, parseQueue: parses, lruCache: cache });
  }
}
