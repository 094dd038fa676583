import { type DeviceName, measurePeak } from 'flashattn';
import type { GPT, Layer, LossPoint } from 'flashattn/nn';
import type { Comparison } from './attention.js';

const LABEL = 12;
const BAR = 24;

export const print = (label: string, text: string): void => console.log(label.padEnd(LABEL) + text);

export interface Summary {
  readonly tokensPerSecond: number;
  readonly flopsShareOfPeak: number;
  /** Of softmax attention alone, as is what follows. */
  readonly attentionShare?: number;
  readonly unfusedTimesSlower?: number;
}

/** Softmax attention in two ways, over so many channels. */
export type Race = Comparison & { readonly width: number };

const median = (list: readonly number[]): number => [...list].sort((a, b) => a - b)[list.length >> 1] ?? Number.NaN;

/** A bar on a terminal, lines elsewhere. */
export class Progress {
  readonly points: LossPoint[] = [];
  readonly #run: { readonly first: number; readonly steps: number; readonly tokensPerStep: number };
  readonly #milliseconds: number[] = [];
  #smoothed = Number.NaN;
  #open = false;

  constructor(run: { readonly first: number; readonly steps: number; readonly tokensPerStep: number }) {
    this.#run = run;
  }

  update(loss: number, milliseconds: number, bytes: number): void {
    const { first, steps, tokensPerStep } = this.#run;
    this.#milliseconds.push(milliseconds);
    const done = first + this.#milliseconds.length;
    this.#smoothed = Number.isNaN(this.#smoothed) ? loss : 0.95 * this.#smoothed + 0.05 * loss;
    this.points.push({ step: done, train: loss });
    const speed = (1000 * tokensPerStep) / median(this.#milliseconds.slice(-20));
    const line = `${done}/${steps}  loss ${this.#smoothed.toFixed(3)}  ${Math.round(speed)} tokens/s  ${(bytes / 2 ** 20).toFixed(0)} MiB`;
    if (process.stdout.isTTY) {
      const full = Math.round((BAR * done) / steps);
      process.stdout.write(`\r[${'#'.repeat(full)}${'.'.repeat(BAR - full)}] ${line}   `);
      this.#open = true;
    } else if (done % 100 === 0 || done === steps) console.log(line);
  }

  /** Ends the line of the bar. */
  end(): void {
    if (this.#open) process.stdout.write('\n');
    this.#open = false;
  }

  /**
   * What of a device's arithmetic the steps were, and how much of them attention was.
   *
   * @param race of softmax attention; without it the work of the layers in its place is not counted beside that of weights
   */
  async summary(model: GPT<Layer>, race: Race | undefined, device: string): Promise<Summary> {
    const { tokensPerStep } = this.#run;
    const step = median(this.#milliseconds);
    const slower = race && { unfusedTimesSlower: race.unfused / race.fused };
    if (Number.isNaN(step))
      return { tokensPerSecond: 0, flopsShareOfPeak: 0, ...(race && { attentionShare: 0 }), ...slower };
    const layers = model.blocks.length;
    const width = model.tokens.width;
    const embedded = (model.positions ? model.context : 0) * width;
    // Six operations a weight and token; of attention half of the scores, as it is causal, forward and backward.
    const ofWeights = 6 * (model.parameterCount - embedded) * tokensPerStep;
    const ofScores = race ? layers * 7 * race.width * model.context * tokensPerStep : 0;
    // The best of a few: other programs take their share of a measurement.
    let peak = 0;
    for (let run = 0; run < 5; run++) peak = Math.max(peak, await measurePeak(device as DeviceName));
    return {
      tokensPerSecond: (1000 * tokensPerStep) / step,
      flopsShareOfPeak: (ofWeights + ofScores) / (step / 1000) / peak,
      ...(race && { attentionShare: (layers * race.fused) / step }),
      ...slower,
    };
  }
}
