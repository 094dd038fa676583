import {
  type AttentionOptions,
  type AttentionResult,
  attention,
  attentionBackward,
  blockMask,
  blockMaskFromBytes,
  blockMaskToBytes,
  type DeviceName,
  FlashAttnError,
  type FloatDType,
  type Gradients,
  gatherRows,
  masks,
  mergeStates,
  mergeStatesBackward,
  plan,
  RowMap,
  type Shape,
  type Tensor,
  tensor,
  zeros,
} from 'flashattn';
import type { Random } from '../fuzz/random.js';

/** How large problems are: the emulator takes a thousand times longer. */
export interface Sizes {
  readonly tokens: number;
  readonly heads: number;
  readonly dim: number;
}

export interface World {
  readonly device: DeviceName;
  readonly sizes: Sizes;
  readonly random: Random;
  /** Tensors that are kept for a while. */
  readonly kept: Tensor[];
}

interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly options: AttentionOptions;
}

const dtypes: readonly FloatDType[] = ['float32', 'float16', 'bfloat16'];

function make({ device, random }: World, shape: Shape, dtype: FloatDType = 'float32'): Tensor {
  const count = shape.reduce((product, n) => product * n, 1);
  return tensor(
    Float32Array.from({ length: count }, () => random.integer(-64, 64) / 64),
    shape,
    { dtype, device },
  );
}

/** Disposes some, keeps some and forgets the others: their memory is the collector's to give back. */
function letGo(world: World, tensors: readonly (Tensor | undefined)[]): void {
  for (const t of tensors) {
    if (!t || t.disposed) continue;
    const fate = world.random.below(10);
    if (fate < 6) t.dispose();
    else if (fate < 8) world.kept.push(t);
  }
  while (world.kept.length > 30) world.kept.splice(world.random.below(world.kept.length), 1)[0].dispose();
}

function randomOptions(
  world: World,
  shape: { batch: number; nq: number; nk: number; heads: number },
  dtype: FloatDType,
) {
  const { random } = world;
  const { batch, nq, nk, heads } = shape;
  const options: AttentionOptions = {};
  if (random.chance(0.3)) options.causal = true;
  if (random.chance(0.2)) options.softcap = 5;
  if (random.chance(0.2)) options.dropout = { p: 0.25, seed: random.below(1000) };
  if (random.chance(0.2)) options.alibi = Float32Array.from({ length: heads }, () => 0.1);
  if (random.chance(0.2)) options.sink = make(world, [heads], dtype);
  if (random.chance(0.2)) options.bias = make(world, [1, random.chance(0.5) ? 1 : heads, nq, nk], dtype);
  if (random.chance(0.3)) options.mask = masks.or(masks.slidingWindow(20, 5), masks.globalTokens(1));
  if (random.chance(0.2)) options.kLens = Array.from({ length: batch }, () => random.below(nk + 1));
  return options;
}

function randomInputs(world: World): Inputs {
  const { random, sizes } = world;
  const [batch, kvHeads] = [random.integer(1, 2), random.integer(1, sizes.heads)];
  const heads = kvHeads * random.integer(1, 2);
  const [nq, nk] = [random.integer(1, sizes.tokens), random.integer(1, sizes.tokens)];
  const dim = random.integer(1, sizes.dim);
  const dtype = random.pick(dtypes);
  return {
    q: make(world, [batch, nq, heads, dim], dtype),
    k: make(world, [batch, nk, kvHeads, dim], dtype),
    v: make(world, [batch, nk, kvHeads, dim], dtype),
    options: randomOptions(world, { batch, nq, nk, heads }, dtype),
  };
}

const inputTensors = ({ q, k, v, options }: Inputs) => [q, k, v, options.bias, options.sink];
const allOf = (gradients: Gradients) => Object.values(gradients) as (Tensor | undefined)[];

async function createAndRead(world: World): Promise<void> {
  const { random, device } = world;
  const shape = [random.integer(1, 8), random.integer(1, 8), random.integer(1, 64)];
  const t = random.chance(0.5) ? make(world, shape, random.pick(dtypes)) : zeros(shape, { device });
  if (random.chance(0.3)) t.write(new Array<number>(t.size).fill(1));
  if (random.chance(0.5)) await t.data();
  else t.dataSync();
  letGo(world, [t]);
}

async function views(world: World): Promise<void> {
  const t = make(world, [2, 3, 4, 8]);
  const made = [t.reshape([6, 32]), t.transpose(1, 2), t.slice(1, 1, 3), t.select(0, 1)];
  letGo(world, [t]);
  await made[1].toFloat32();
  letGo(world, made);
}

async function forward(world: World): Promise<void> {
  const inputs = randomInputs(world);
  const { out, lse } = attention(inputs.q, inputs.k, inputs.v, inputs.options);
  letGo(world, inputTensors(inputs));
  if (world.random.chance(0.3)) await out.data();
  letGo(world, [out, lse]);
}

async function backward(world: World): Promise<void> {
  const inputs = randomInputs(world);
  const { q, k, v, options } = inputs;
  const { out, lse } = attention(q, k, v, options);
  const dOut = make(world, out.shape, out.dtype);
  const gradients = attentionBackward(dOut, { q, k, v, out, lse }, options);
  letGo(world, [...inputTensors(inputs), out, lse, dOut]);
  if (world.random.chance(0.3)) await gradients.dq.data();
  letGo(world, allOf(gradients));
}

async function planned(world: World): Promise<void> {
  const inputs = randomInputs(world);
  const { q, k, v, options } = inputs;
  const shapes = { q: q.shape, k: k.shape, v: v.shape, dtype: q.dtype };
  const prepared = plan({ ...shapes, ...options, device: world.device, backward: true });
  for (let run = world.random.integer(1, 3); run > 0; run--) {
    const { out } = prepared.run(q, k, v);
    const dOut = make(world, out.shape, out.dtype);
    prepared.runBackward(dOut);
    letGo(world, [dOut]);
  }
  if (world.random.chance(0.6)) prepared.dispose();
  letGo(world, inputTensors(inputs));
}

async function merge(world: World): Promise<void> {
  const [nq, heads, dim] = [world.random.integer(1, world.sizes.tokens), 2, 8];
  const states: AttentionResult[] = Array.from({ length: world.random.integer(1, 3) }, () => {
    const { q, k, v } = { q: [1, nq, heads, dim], k: [1, 7, heads, dim], v: [1, 7, heads, dim] };
    const made = [make(world, q), make(world, k), make(world, v)] as const;
    const state = attention(...made);
    letGo(world, made);
    return state;
  });
  const merged = mergeStates(states);
  const dOut = make(world, merged.out.shape);
  const gradients = mergeStatesBackward(dOut, { states, ...merged });
  await gradients[0].dLse.data();
  letGo(
    world,
    [...states, merged].flatMap(({ out, lse }) => [out, lse]),
  );
  letGo(world, [dOut, ...gradients.flatMap(({ dOut: d, dLse }) => [d, dLse])]);
}

async function masked(world: World): Promise<void> {
  const tokens = world.random.integer(1, world.sizes.tokens);
  const blocks = { queries: tokens, keys: tokens, blockSize: 16, count: 1, seed: world.random.below(100) };
  const pattern = masks.and(masks.causal(), masks.randomBlocks(blocks));
  const mask = blockMaskFromBytes(blockMaskToBytes(blockMask(pattern, { nq: tokens })));
  const q = make(world, [1, tokens, 1, 8]);
  const { out, lse } = attention(q, q, q, { mask });
  const { dq, dk, dv } = attentionBackward(q, { q, k: q, v: q, out, lse }, { mask });
  letGo(world, [q, out, lse, dq, dk, dv]);
}

async function gather(world: World): Promise<void> {
  const rows = world.random.integer(1, 40);
  const map = RowMap.of(
    Array.from({ length: rows }, () => world.random.integer(-1, 9)),
    10,
  );
  const source = make(world, [2, 10, 3, 5]);
  const result = gatherRows(source, map);
  const back = gatherRows(result, map.transposed());
  letGo(world, [source, result, back]);
}

/** Calls that are refused leave nothing behind. */
async function refused(world: World): Promise<void> {
  const q = make(world, [1, 4, 2, 8]);
  const wrong = make(world, [1, 4, 2, 9]);
  const calls = [
    () => attention(q, wrong, wrong),
    () => attention(q, q, q, { softcap: -1 }),
    () => plan({ q: [1, 4, 2, 300], device: world.device }),
    () => zeros([2 ** 20, 2 ** 20, 2 ** 10], { device: world.device }),
    () => mergeStates([]),
  ];
  try {
    world.random.pick(calls)();
    throw new Error('a wrong call was not refused');
  } catch (error) {
    if (!(error instanceof FlashAttnError)) throw error;
  }
  letGo(world, [q, wrong]);
}

/** Every operation with its weight. */
const weighted: readonly (readonly [weight: number, run: (world: World) => Promise<void>])[] = [
  [4, createAndRead],
  [2, views],
  [4, forward],
  [4, backward],
  [2, planned],
  [2, merge],
  [2, masked],
  [1, gather],
  [1, refused],
];
const operations = weighted.flatMap(([weight, run]) => new Array<typeof run>(weight).fill(run));

export async function runOperation(world: World): Promise<void> {
  await world.random.pick(operations)(world);
}
