/** A progress bar: one line drawn over and over on a terminal, a plain line now and then anywhere else. */

export interface Sample {
  readonly loss: number;
  readonly tokens: number;
  readonly deviceBytes: number;
}

const BAR_WIDTH = 24;
const REDRAW_MS = 100;
const PLAIN_LINE_MS = 5000;

export class Progress {
  readonly #total: number;
  readonly #stream: NodeJS.WriteStream;
  readonly #started = performance.now();
  #step = 0;
  #tokens = 0;
  /** Exponential moving average, since the loss of one small batch jumps about. */
  #loss = Number.NaN;
  #deviceBytes = 0;
  #drawn = -Infinity;
  /** Time taken by things that are no training: they must not count as slow training. */
  #pausedMs = 0;

  constructor(total: number, stream: NodeJS.WriteStream = process.stdout) {
    this.#total = total;
    this.#stream = stream;
  }

  get loss(): number {
    return this.#loss;
  }

  get seconds(): number {
    return (performance.now() - this.#started - this.#pausedMs) / 1000;
  }

  get tokensPerSecond(): number {
    return this.#tokens / this.seconds;
  }

  update({ loss, tokens, deviceBytes }: Sample): void {
    this.#step++;
    this.#tokens += tokens;
    this.#deviceBytes = deviceBytes;
    this.#loss = this.#step === 1 ? loss : this.#loss + (loss - this.#loss) * Math.max(0.05, 1 / this.#step);
    const now = performance.now();
    if (now - this.#drawn < (this.#stream.isTTY ? REDRAW_MS : PLAIN_LINE_MS) && this.#step < this.#total) return;
    this.#drawn = now;
    this.#draw();
  }

  /** Leaves the clock out of `work`. */
  async pause<T>(work: () => Promise<T>): Promise<T> {
    const started = performance.now();
    try {
      return await work();
    } finally {
      this.#pausedMs += performance.now() - started;
    }
  }

  end(): void {
    if (!this.#stream.isTTY || this.#step === 0) return;
    this.#draw();
    this.#stream.write('\n');
  }

  #draw(): void {
    const text = this.#line();
    if (!this.#stream.isTTY) this.#stream.write(`${text}\n`);
    // A line longer than the terminal would wrap, and could not be drawn over.
    else this.#stream.write(`\r\x1b[K${text.slice(0, (this.#stream.columns || 80) - 1)}`);
  }

  #line(): string {
    const done = this.#step / this.#total;
    const filled = Math.round(done * BAR_WIDTH);
    const bar = '#'.repeat(filled) + '.'.repeat(BAR_WIDTH - filled);
    const remaining = (this.seconds / this.#step) * (this.#total - this.#step);
    return [
      `[${bar}] ${String(this.#step).padStart(String(this.#total).length)}/${this.#total}`,
      `loss ${this.#loss.toFixed(3)}`,
      `${Math.round(this.tokensPerSecond)} tokens/s`,
      `memory ${mebibytes(this.#deviceBytes)} device, ${mebibytes(process.memoryUsage.rss())} process`,
      `${duration(remaining)} left`,
    ].join('  ');
  }
}

export function mebibytes(bytes: number): string {
  const value = bytes / 2 ** 20;
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} MiB`;
}

export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, '0')} s`;
}
