/** Small models and what float64 says of them. */
import { type DeviceName, noGrad, type Tensor, tensor } from '../../lib/index.js';
import { GPT, type GPTOptions, type Module } from '../../lib/nn/index.js';
import { normal, uniform } from '../../verify/oracle/random.js';
import type { GptShape, Weights } from '../../verify/oracle/transformer.js';

/** A model with weights so large that every part of it matters, and that norms and biases are none at their beginnings. */
export function modelOf(options: GPTOptions, seed = 1): GPT {
  const model = new GPT(options);
  randomize(model, seed);
  return model;
}

export function randomize(model: Module, seed: number, deviation = 0.3): void {
  let next = seed;
  for (const [name, t] of model.namedParameters()) {
    const around = /norm\d?\.weight$/.test(name) ? 1 : 0;
    t.write(Float32Array.from(normal(t.size, next++, deviation), (x) => around + x));
  }
}

/** What the tensors hold now, as the oracle takes it. */
export async function weightsOf(model: Module): Promise<Weights> {
  const entries = [...model.namedParameters()].map(
    async ([name, t]) => [name, { shape: t.shape, data: Float64Array.from(await t.toFloat32()) }] as const,
  );
  return Object.fromEntries(await Promise.all(entries));
}

/** `options` in the words of the oracle; `drops`: what the next pass of the model draws its dropout from. */
export function shapeOf(options: GPTOptions, drops?: { readonly model: GPT; readonly p: number }): GptShape {
  const { vocabulary, width, layers, heads, kvHeads = heads, norm = 'layer', rope, alibi } = options;
  const headDim = options.headDim ?? width / heads;
  return {
    ...{ vocabulary, width, layers, heads, kvHeads, headDim, norm },
    hidden: options.hidden ?? 4 * width,
    epsilon: options.epsilon ?? (norm === 'layer' ? 1e-5 : 1e-6),
    activation: options.activation ?? 'gelu',
    ...(rope && { rope: { base: rope.base ?? 10_000, dims: rope.dims ?? headDim, pairs: rope.pairs ?? 'half' } }),
    ...(alibi && { alibi: [...(alibi as readonly number[])] }),
    ...(drops && { dropout: { p: drops.p, seeds: nextSeeds(drops.model) } }),
  };
}

/** One seed of the embeddings, two of each block, whose second is a step of SplitMix64 further. */
function nextSeeds({ drop, blocks }: GPT): bigint[] {
  const state = (module: { readonly seeds: { readonly state: string } }) => BigInt(module.seeds.state);
  const after = (seed: bigint) => BigInt.asUintN(64, seed + 0x9e3779b97f4a7c15n);
  return [state(drop), ...blocks.flatMap((block) => [state(block.drop), after(state(block.drop))])];
}

export interface Text {
  readonly ids: Int32Array;
  readonly targets: Int32Array;
  readonly batch: number;
  readonly length: number;
}

export function textOf(vocabulary: number, batch: number, length: number, seed = 3): Text {
  const next = uniform(seed);
  const draw = () => Int32Array.from({ length: batch * length }, () => Math.floor(next() * vocabulary));
  return { ids: draw(), targets: draw(), batch, length };
}

export function onDevice({ ids, targets, batch, length }: Text, device: DeviceName) {
  const put = (values: Int32Array) => tensor(values, [batch, length], { device, dtype: 'int32' });
  return { ids: put(ids), targets: put(targets) };
}

/** The largest difference, by the largest number of what is wanted. */
export function relativeError(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  if (got.length !== wanted.length) return Number.POSITIVE_INFINITY;
  let [worst, most] = [0, 0];
  for (let i = 0; i < wanted.length; i++) {
    const difference = Math.abs((got[i] as number) - (wanted[i] as number));
    worst = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : Math.max(worst, difference);
    most = Math.max(most, Math.abs(wanted[i] as number));
  }
  return worst === 0 ? 0 : worst / most;
}

/** The length of the difference, by that of what is wanted. */
export function normError(got: ArrayLike<number>, wanted: ArrayLike<number>): number {
  let [difference, length] = [0, 0];
  for (let i = 0; i < wanted.length; i++) {
    difference += ((got[i] as number) - (wanted[i] as number)) ** 2;
    length += (wanted[i] as number) ** 2;
  }
  return Math.sqrt(difference / length);
}

export const read = (t: Tensor | undefined): Promise<Float32Array> => {
  if (!t) throw new Error('no tensor');
  return t.toFloat32();
};

/** What the model says behind every token of a text. */
export async function logitsOf(text: Text, model: GPT): Promise<Float32Array> {
  const { ids, targets } = onDevice(text, model.tokens.weight.device as DeviceName);
  const logits = noGrad(() => model.forward(ids));
  const values = await logits.toFloat32();
  for (const t of [ids, targets, logits]) t.dispose();
  return values;
}
