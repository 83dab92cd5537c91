/**
 * One at a time, newest wins: while a version is being loaded, newer ones wait, and of those only
 * the newest is loaded next. A slow server is so never asked for versions nobody will see, and a
 * steady stream of versions cannot keep the picture from ever being finished.
 */
export class Latest<T> {
  private waiting: { value: T } | null = null;
  private busy = false;

  /** load may fail; the next value is loaded all the same. */
  constructor(private readonly load: (value: T) => Promise<void>) {}

  push(value: T): void {
    this.waiting = { value };
    if (!this.busy) void this.drain();
  }

  /** Forgets what waits. */
  clear(): void {
    this.waiting = null;
  }

  private async drain(): Promise<void> {
    this.busy = true;
    while (this.waiting !== null) {
      const { value } = this.waiting;
      this.waiting = null;
      await this.load(value).catch(() => undefined);
    }
    this.busy = false;
  }
}
