/** Uploads, one after the other. */

import { messageOf } from "./api";
import type { Preset, Scene } from "./types";

export interface Upload {
  key: number;
  name: string;
  /** Share of the bytes sent, 0 to 1; null while it waits. */
  share: number | null;
  /** Why it failed, in the server's words. */
  error: string | null;
}

/** Sends one file; sending.uploadScene, or a test's own. */
export type Send = (
  file: File,
  preset: Preset,
  onProgress: (share: number) => void,
) => { done: Promise<Scene>; abort: () => void };

export class UploadQueue {
  private uploads: readonly Upload[] = [];
  private nextKey = 0;
  private tail: Promise<void> = Promise.resolve();
  private readonly aborts = new Map<number, () => void>();

  /** onScene gets each scene made, and how many files were added together with it. */
  constructor(
    private readonly send: Send,
    private readonly onChange: (uploads: readonly Upload[]) => void,
    private readonly onScene: (scene: Scene, together: number) => void,
  ) {}

  add(files: readonly File[], preset: Preset): void {
    for (const file of files) {
      const key = this.nextKey++;
      this.publish([...this.uploads, { key, name: file.name, share: null, error: null }]);
      this.tail = this.tail.then(() => this.run(file, preset, key, files.length));
    }
  }

  /** Stops an upload, or takes a failed one off the list. */
  dismiss(key: number): void {
    this.publish(this.uploads.filter((upload) => upload.key !== key));
    this.aborts.get(key)?.();
  }

  private async run(file: File, preset: Preset, key: number, together: number): Promise<void> {
    if (!this.uploads.some((upload) => upload.key === key)) return;
    const { done, abort } = this.send(file, preset, (share) => this.change(key, { share }));
    this.aborts.set(key, abort);
    try {
      this.onScene(await done, together);
      this.dismiss(key);
    } catch (reason) {
      this.change(key, { error: messageOf(reason) });
    } finally {
      this.aborts.delete(key);
    }
  }

  private change(key: number, part: Partial<Upload>): void {
    this.publish(this.uploads.map((upload) => (upload.key === key ? { ...upload, ...part } : upload)));
  }

  private publish(uploads: readonly Upload[]): void {
    this.uploads = uploads;
    this.onChange(uploads);
  }
}
