// Attention on any device: what surrounds the kernels' launches.
import {
  type AttentionExtras,
  type AttentionMemory,
  type AttentionProblem,
  attentionBackward,
  attentionForward,
  type BackwardOperands,
  blockMaskArrays,
  type ForwardOperands,
  type PagedOperands,
  pagedAttention,
} from '../../kernels/attention.js';
import { asStrided, copy, fill } from '../../kernels/copy.js';
import type { Backend } from '../../kernels/device.js';
import type { DeviceBuffer, HostArray } from '../../kernels/memory.js';
import { addressOf, type Flat, type Strided } from '../../kernels/operand.js';
import { type ScoreProgram, scoreProgram } from '../../kernels/scoreProgram.js';
import { passedBytes, Scratch, type WideGradient } from './scratch.js';
import { StructMemory } from './structWriter.js';

/** The lse of a row that sees nothing. */
const negativeInfinityBits = 0xff800000;

/** Whether launches write every row of the results; rows outside of all sequences are filled beforehand otherwise. */
const coversAllRows = (p: AttentionProblem) => p.sequences === undefined;

const contiguousStrides = (shape: readonly number[]): number[] => {
  let stride = 1;
  return shape
    .map((_, at) => shape[shape.length - 1 - at])
    .map((n) => {
      const own = n === 1 ? 0 : stride;
      stride *= n;
      return own;
    })
    .reverse();
};

/** A float32 array of the same elements: where it is already one, the array itself. */
function widen(backend: Backend, from: Strided | Flat | undefined, into: DeviceBuffer | undefined) {
  const strided = from && ('strides' in from ? from : asStrided(from));
  if (!strided || !into) return { address: addressOf(from), strides: strided?.strides ?? [] };
  const { shape } = strided;
  const strides = contiguousStrides(shape);
  backend.launch(copy, { from: strided, to: { buffer: into, offset: 0, dtype: 'float32', shape, strides } });
  return { address: into.address, strides };
}

function scoreProgramArrays(program: ScoreProgram): readonly HostArray[] {
  const memory = new StructMemory(new ArrayBuffer(scoreProgram.byteLength));
  memory.write(scoreProgram, program);
  return [memory.words];
}

/** What problems bring along that is uploaded once. */
const uploadsOf = (backend: Backend, { blockMask, scoreMod }: AttentionProblem) => ({
  blockMask: blockMask && backend.upload(blockMask, blockMaskArrays),
  scoreMod: scoreMod && backend.upload(scoreMod, scoreProgramArrays),
});

/** Finds what the kernels read and write besides q, k, v and their like; widens what they read as float32. */
function prepare(
  backend: Backend,
  problem: AttentionProblem,
  operands: ForwardOperands | BackwardOperands,
  scratch: Scratch,
): AttentionMemory {
  const gradients = 'dOut' in operands ? operands : undefined;
  const { blockMask, scoreMod } = uploadsOf(backend, problem);
  const buffers = [...scratch.buffers];
  for (const uploaded of [blockMask, scoreMod]) if (uploaded) buffers.push(uploaded.buffer);
  const bias = widen(backend, operands.bias, scratch.get('bias'));
  return {
    sequences: scratch.address('sequences'),
    bias: bias.address,
    biasStrides: bias.strides,
    alibi: scratch.address('alibi') || addressOf(operands.alibi),
    relativeTable: widen(backend, operands.relativeTable, scratch.get('relativeTable')).address,
    buckets: scratch.address('buckets'),
    queryPosition: scratch.address('queryPosition'),
    keyPosition: scratch.address('keyPosition'),
    sink: widen(backend, operands.sink, scratch.get('sink')).address,
    blockMask,
    scoreMod,
    dRelative: scratch.address('dRelative') || addressOf(gradients?.dRelative),
    dSink: scratch.address('dSink') || addressOf(gradients?.dSink),
    dBias: scratch.address('dBias') || addressOf(gradients?.dBias),
    decodeStates: scratch.address('decodeStates'),
    rowTerms: scratch.address('rowTerms'),
    dQuerySum: scratch.address('dQuerySum'),
    turns: scratch.address('turns'),
    dRelativePartial: scratch.address('dRelativePartial'),
    buffers,
  };
}

/** Scratch memory for repeated runs of one problem, so that they allocate nothing; to be disposed by the caller. */
export function createScratch(
  backend: Backend,
  problem: AttentionProblem,
  extras: AttentionExtras,
  backward: boolean,
): Scratch {
  uploadsOf(backend, problem);
  return new Scratch(backend, problem, extras, backward);
}

function withScratch(
  backend: Backend,
  problem: AttentionProblem,
  extras: AttentionExtras,
  backward: boolean,
  given: Scratch | undefined,
  run: (scratch: Scratch) => void,
): void {
  const scratch = given ?? createScratch(backend, problem, extras, backward);
  try {
    run(scratch);
  } finally {
    if (!given) scratch.dispose();
  }
}

/** Queues forward. `given`: scratch memory of `createScratch`. */
export function forward(backend: Backend, problem: AttentionProblem, operands: ForwardOperands, given?: Scratch): void {
  if (!coversAllRows(problem)) {
    backend.launch(fill, { buffer: operands.out.buffer, bits: 0 });
    backend.launch(fill, { buffer: operands.lse.buffer, bits: negativeInfinityBits });
  }
  withScratch(backend, problem, operands, false, given, (scratch) => {
    const memory = prepare(backend, problem, operands, scratch);
    backend.launch(attentionForward, { problem, operands, memory, partition: scratch.partition });
  });
}

/** Queues attention over keys in pages; the problem's sequences have every row. */
export function pagedForward(backend: Backend, problem: AttentionProblem, operands: PagedOperands): void {
  withScratch(backend, problem, operands, false, undefined, (scratch) => {
    const memory = prepare(backend, problem, operands, scratch);
    backend.launch(pagedAttention, { problem, operands, memory, partition: scratch.partition });
  });
}

/** Queues backward. `given`: scratch memory of `createScratch`. */
export function backward(
  backend: Backend,
  problem: AttentionProblem,
  operands: BackwardOperands,
  given?: Scratch,
): void {
  const { dQuery, dKey, dValue, dBias, dRelative, dSink } = operands;
  const nothingSeen = problem.batch === 0 || problem.queryLength === 0;
  const zero = (gradient: { buffer: DeviceBuffer } | undefined) =>
    gradient && backend.launch(fill, { buffer: gradient.buffer, bits: 0 });
  if (nothingSeen || !coversAllRows(problem)) for (const gradient of [dQuery, dKey, dValue]) zero(gradient);
  if (nothingSeen) {
    for (const gradient of [dBias, dRelative, dSink]) zero(gradient);
    return;
  }
  withScratch(backend, problem, operands, true, given, (scratch) => {
    const memory = prepare(backend, problem, operands, scratch);
    backend.launch(attentionBackward, { problem, operands, memory, partition: scratch.partition });
    const round = (target: Flat | undefined, name: WideGradient) => {
      const wide = scratch.get(name);
      if (!wide || !target) return;
      const from: Flat = { buffer: wide, offset: 0, dtype: 'float32', count: target.count };
      backend.launch(copy, { from: asStrided(from), to: asStrided(target) });
    };
    round(dBias, 'dBias');
    round(dRelative, 'dRelative');
    round(dSink, 'dSink');
  });
}

/** What one launch of a problem will use, before anything runs. */
export interface KernelChoice {
  readonly kernel: string;
  readonly queryTile: number;
  readonly keyTile: number;
  readonly items: number;
  /** Of a CUDA launch, forward. */
  readonly block?: { readonly threads: number; readonly sharedMemoryBytes: number };
  readonly workspaceBytes: number;
}

export function describeKernels(backend: Backend, problem: AttentionProblem, backward: boolean): KernelChoice {
  const partition = backend.partition(problem);
  const { queryTile, keyTile, items, threads, sharedMemory } = partition;
  return {
    kernel: backend.kernels,
    queryTile,
    keyTile,
    items,
    ...(threads > 0 && { block: { threads, sharedMemoryBytes: sharedMemory } }),
    workspaceBytes: backend.workspaceBytes + passedBytes(partition, backward),
  };
}
