/** OpenSeadragon on a scene's tiles. New versions replace the old without moving the view. */

import OpenSeadragon from "openseadragon";
import { versioned } from "../core/api";
import { Latest } from "../core/latest";
import type { View } from "../core/overlay";
import type { ImageInfo } from "../core/types";

interface Snapshot {
  info: ImageInfo;
  version: number;
}

const OPTIONS: Partial<OpenSeadragon.Options> = {
  drawer: "canvas",
  showNavigationControl: false,
  showNavigator: false,
  animationTime: 0.7,
  maxZoomPixelRatio: 10,
  minZoomImageRatio: 0.7,
  visibilityRatio: 0.6,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
  // A busy server answers 503 and asks to come again.
  tileRetryMax: 3,
  tileRetryDelay: 1500,
  viewportMargins: { left: 20, top: 20, right: 20, bottom: 20 },
};

/**
 * OpenSeadragon adds an inline style sheet, which the page's policy forbids, unless a `style` so marked
 * is there already. An element of that name outside HTML styles nothing; the rule is in stage.css.
 */
function standInForInlineStyle(): void {
  const style = document.createElementNS(null, "style");
  style.setAttribute("data-openseadragon-mobile-css", "");
  document.head.append(style);
}
standInForInlineStyle();

/** A IIIF source whose tile addresses carry the snapshot's version. */
function tileSource({ info, version }: Snapshot): OpenSeadragon.TileSource {
  const source = new OpenSeadragon.IIIFTileSource(
    info as unknown as ConstructorParameters<typeof OpenSeadragon.IIIFTileSource>[0],
  );
  const plain = source.getTileUrl.bind(source);
  source.getTileUrl = (level, x, y) => {
    const url = plain(level, x, y);
    return versioned(typeof url === "string" ? url : url(), version);
  };
  return source;
}

export class Stage {
  private readonly viewer: OpenSeadragon.Viewer;
  private current: OpenSeadragon.TiledImage | null = null;
  private readonly snapshots = new Latest<Snapshot>((snapshot) => this.load(snapshot));

  /** onDraw is called whenever the picture was drawn, with where it lies (CSS pixels). */
  constructor(
    element: HTMLElement,
    private readonly onDraw: (view: View) => void,
  ) {
    this.viewer = new OpenSeadragon.Viewer({ ...OPTIONS, element } as OpenSeadragon.Options);
    this.viewer.canvas.setAttribute("role", "application");
    this.viewer.canvas.setAttribute("aria-label", "Arrow keys move the picture, plus and minus zoom");
    this.viewer.addHandler("update-viewport", () => this.reportView());
    this.viewer.addHandler("resize", () => this.reportView());
  }

  show(info: ImageInfo, version: number): void {
    this.snapshots.push({ info, version });
  }

  zoomBy(factor: number): void {
    this.viewer.viewport.zoomBy(factor).applyConstraints();
  }

  home(): void {
    this.viewer.viewport.goHome();
  }

  destroy(): void {
    this.snapshots.clear();
    this.viewer.destroy();
  }

  private async load(snapshot: Snapshot): Promise<void> {
    const next = await this.add(tileSource(snapshot), this.current === null);
    const previous = this.current;
    this.current = next;
    this.reportView();
    if (previous === null) return;
    await new Promise<void>((resolve) => next.whenFullyLoaded(() => resolve()));
    next.setOpacity(1);
    // One drawing with both, or the bare stage would flash between them.
    this.viewer.addOnceHandler("update-viewport", () => this.viewer.world.removeItem(previous));
    this.viewer.forceRedraw();
  }

  /** Adds an image, visible at once when it is the first, else loading unseen on top. */
  private add(source: OpenSeadragon.TileSource, first: boolean): Promise<OpenSeadragon.TiledImage> {
    return new Promise((resolve, reject) => {
      this.viewer.addTiledImage({
        tileSource: source,
        opacity: first ? 1 : 0,
        preload: true,
        success: (event: unknown) => resolve((event as { item: OpenSeadragon.TiledImage }).item),
        error: (event: unknown) => reject(new Error((event as { message: string }).message)),
      } as unknown as OpenSeadragon.TileSourceSpecifier);
    });
  }

  private reportView(): void {
    if (this.current === null || this.viewer.isDestroyed()) return;
    const size = this.current.getContentSize();
    const toScreen = (x: number, y: number): OpenSeadragon.Point => {
      const point = this.current?.imageToViewportCoordinates(x, y, true) ?? new OpenSeadragon.Point();
      return this.viewer.viewport.pixelFromPoint(point, true);
    };
    const origin = toScreen(0, 0);
    const { clientWidth: width, clientHeight: height } = this.viewer.container;
    const scale = (toScreen(size.x, 0).x - origin.x) / size.x;
    this.onDraw({ x: origin.x, y: origin.y, scale, width, height });
  }
}
