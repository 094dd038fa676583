import { createScratch, forward, backward as launchBackward } from '../backends/shared/attention.js';
import type { Scratch } from '../backends/shared/scratch.js';
import { checkBoolean } from '../base/check.js';
import { checkFloatDType, type FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError } from '../base/errors.js';
import { backendFor, type DeviceName } from '../devices/registry.js';
import type { AttentionProblem } from '../kernels/attention.js';
import type { Backend, Recording } from '../kernels/device.js';
import { needsRecord } from '../tape/tape.js';
import { checkDisjoint, type NamedTensors } from '../tensor/overlap.js';
import { checkShape } from '../tensor/shape.js';
import { type AnyTensor, allocating, isTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import {
  type AttentionResult,
  allocateGradients,
  allocateOutputs,
  backwardOperands,
  checkSaved,
  forwardOperands,
  frozenCopy,
  type Gradients,
  type Saved,
} from './attention.js';
import { expect, optionOperands } from './operands.js';
import type { AttentionOptions } from './options.js';
import { readProblem } from './problem.js';
import { rotaryTables } from './rotary.js';
import { tableName, tablesOf } from './scoreMod.js';

/** A call to attention without its tensors: shapes, dtype, device and the options of `attention`. */
export type Problem<D extends FloatDType = FloatDType> = AttentionOptions & {
  /** As the tensors of `attention`: [batch, Nq, heads, dim] and so on. */
  readonly q: Shape;
  /** Default: the shape of q. */
  readonly k?: Shape;
  /** Default: the shape of k. */
  readonly v?: Shape;
  /** Default 'float32'. */
  readonly dtype?: D;
  /** Default 'auto'. */
  readonly device?: DeviceName;
  /** Whether gradients are wanted too. Default false. */
  readonly backward?: boolean;
};

/** @internal */
export interface ResolvedProblem {
  readonly problem: AttentionProblem;
  readonly options: AttentionOptions;
  readonly shapes: { readonly q: Shape; readonly k: Shape; readonly v: Shape };
  readonly backend: Backend;
  readonly backward: boolean;
}

/** @internal */
export function resolveProblem(description: Problem): ResolvedProblem {
  if (description === null || typeof description !== 'object')
    throw optionError('problem must be an object with at least the shape q');
  const { q, k = q, v = k, dtype: requested = 'float32', device, backward = false, ...options } = description;
  const shapes = { q: checkShape(q, 'q'), k: checkShape(k, 'k'), v: checkShape(v, 'v') };
  const dtype = checkFloatDType(requested, 'dtype');
  checkBoolean(backward, 'backward');
  const kept = frozenCopy(options as AttentionOptions);
  const problem = readProblem(shapes.q, shapes.k, shapes.v, dtype, kept);
  return { problem, options: kept, shapes, backend: backendFor(device), backward };
}

// A backstop, as for tensors.
const collected = new FinalizationRegistry<readonly Scratch[]>((memory) => {
  for (const scratch of memory) scratch.dispose();
});

const forgotten = new FinalizationRegistry<Recording>((recording) => recording.dispose());

/** What `Captured` is made of. */
interface CapturedParts<Results> {
  readonly backend: Backend;
  readonly recording: Recording;
  readonly results: Results;
  /** The inputs. */
  readonly used: NamedTensors;
  /** Called before each replay. @throws ERR_DISPOSED */
  readonly begin: () => void;
}

/** A pass of a plan over certain tensors, recorded. See `Plan.capture`. */
export class Captured<Results> implements Disposable {
  readonly #parts: CapturedParts<Results>;
  #disposed = false;

  /** @internal Use `Plan.capture`. */
  constructor(parts: CapturedParts<Results>) {
    this.#parts = parts;
    forgotten.register(this, parts.recording, this);
  }

  /**
   * Queues the pass once more, over what its tensors hold by then. Returns the same tensors every time, overwritten; they
   * belong to the plan.
   *
   * @throws ERR_DISPOSED, ERR_DEVICE
   */
  replay(): Results {
    if (this.#disposed) throw new FlashAttnError('ERR_DISPOSED', 'what was captured has been disposed');
    const { backend, recording, results, used, begin } = this.#parts;
    for (const [name, t] of Object.entries(used)) t?.operand(name, backend);
    begin();
    recording.replay();
    for (const t of Object.values(results as object)) if (isTensor(t)) t.written();
    return results;
  }

  /** Frees the recording; the plan and the tensors stay as they are. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    forgotten.unregister(this);
    this.#parts.recording.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** See `plan`. */
export class Plan<D extends FloatDType = FloatDType> implements Disposable {
  readonly #resolved: ResolvedProblem;
  readonly #result: AttentionResult;
  readonly #gradients: Gradients | undefined;
  readonly #forwardScratch: Scratch;
  readonly #backwardScratch: Scratch | undefined;
  #saved: Saved | undefined;
  #disposed = false;

  /** @internal Use `plan`. */
  constructor(resolved: ResolvedProblem) {
    const { problem, options, shapes, backend, backward } = resolved;
    if (options.rope !== undefined && !backend.turnsRows)
      throw optionError(
        `rope is given, and on ${backend.device} a plan holds the kernel alone: turn q and k with rope(), and run the plan with the results`,
      );
    this.#resolved = resolved;
    const like = (shape: Shape) => ({ shape, dtype: problem.dtype });
    const made = allocating(backend, (allocate) => {
      const result = { ...allocateOutputs(problem, allocate), options };
      const inputs = { q: like(shapes.q), k: like(shapes.k), v: like(shapes.v) };
      const gradients = backward ? allocateGradients(inputs, options, allocate) : undefined;
      const extras = optionOperands(options, backend);
      const forwardScratch = createScratch(backend, problem, extras, false);
      try {
        const backwardScratch = backward ? createScratch(backend, problem, extras, true) : undefined;
        return { result, gradients, forwardScratch, backwardScratch };
      } catch (error) {
        forwardScratch.dispose();
        throw error;
      }
    });
    this.#result = made.result;
    this.#gradients = made.gradients;
    this.#forwardScratch = made.forwardScratch;
    this.#backwardScratch = made.backwardScratch;
    collected.register(
      this,
      made.backwardScratch ? [made.forwardScratch, made.backwardScratch] : [made.forwardScratch],
      this,
    );
  }

  /**
   * Runs forward. Returns the same two tensors every time, overwritten; they belong to the plan, and cannot be its
   * inputs.
   */
  run(q: Tensor<D, Shape>, k: Tensor<D, Shape>, v: Tensor<D, Shape>): AttentionResult<D, Shape> {
    this.#checkUsable();
    const { problem, options, shapes, backend } = this.#resolved;
    expect(q, 'q', shapes.q, problem.dtype);
    expect(k, 'k', shapes.k, problem.dtype);
    expect(v, 'v', shapes.v, problem.dtype);
    q.operand('q', backend);
    if (needsRecord([q, k, v, ...Object.values(tensorsOf(options))]))
      throw new FlashAttnError(
        'ERR_AUTOGRAD',
        'a plan records nothing for gradients: call attention(), or run it within noGrad()',
      );
    const result = this.#result as AttentionResult<D, Shape>;
    const operands = forwardOperands(problem, { q, k, v }, options);
    const { out, lse } = result;
    checkDisjoint({ q, k, v, ...tensorsOf(options) }, { out, lse }, 'of the plan');
    forward(backend, problem, operands(result), this.#forwardScratch);
    out.written();
    lse.written();
    this.#saved = { q, k, v, ...result };
    return result;
  }

  /**
   * Runs backward for the tensors of the last `run`. Returns the same tensors every time, overwritten.
   *
   * @param dLse the gradient for lse, if the loss depends on it
   */
  runBackward(dOut: Tensor<D, Shape>, dLse?: Tensor<'float32', Shape>): Gradients<D, Shape> {
    this.#checkUsable();
    const { problem, options, backend } = this.#resolved;
    if (!this.#gradients || !this.#backwardScratch) throw optionError('the plan was made without backward: true');
    if (!this.#saved) throw optionError('runBackward needs a run before it');
    const extras = dLse === undefined ? {} : { dLse };
    checkSaved(problem, dOut, this.#saved, extras);
    const operands = backwardOperands(problem, dOut, this.#saved, options, extras);
    const { q, k, v, out, lse } = this.#saved;
    checkDisjoint({ q, k, v, out, lse, dOut, dLse, ...tensorsOf(options) }, { ...this.#gradients }, 'of the plan');
    launchBackward(backend, problem, operands(this.#gradients), this.#backwardScratch);
    for (const gradient of Object.values(this.#gradients) as Tensor[]) gradient.written();
    return this.#gradients as Gradients<D, Shape>;
  }

  /**
   * Runs forward, and with `dOut` backward too, and records them: `replay()` queues the same launches over the same
   * tensors, as one CUDA graph where the device has such, without the host's work of `run`. Write into the tensors to give
   * it other values.
   *
   * @throws as `run` and `runBackward`
   */
  capture(q: Tensor<D, Shape>, k: Tensor<D, Shape>, v: Tensor<D, Shape>): Captured<Readonly<AttentionResult<D, Shape>>>;
  capture(
    q: Tensor<D, Shape>,
    k: Tensor<D, Shape>,
    v: Tensor<D, Shape>,
    dOut: Tensor<D, Shape>,
    dLse?: Tensor<'float32', Shape>,
  ): Captured<Readonly<AttentionResult<D, Shape> & Gradients<D, Shape>>>;
  capture(
    q: Tensor<D, Shape>,
    k: Tensor<D, Shape>,
    v: Tensor<D, Shape>,
    dOut?: Tensor<D, Shape>,
    dLse?: Tensor<'float32', Shape>,
  ): Captured<Readonly<AttentionResult<D, Shape> & Partial<Gradients<D, Shape>>>> {
    const run = () => ({
      ...this.run(q, k, v),
      ...((dOut !== undefined || dLse !== undefined) && this.runBackward(dOut as Tensor<D, Shape>, dLse)),
    });
    return this.#capture(run, { q, k, v, dOut, dLse });
  }

  /**
   * Records `runBackward` alone, for the tensors of the last `run` or replay: where the loss is computed in between.
   *
   * @throws as `runBackward`
   */
  captureBackward(dOut: Tensor<D, Shape>, dLse?: Tensor<'float32', Shape>): Captured<Readonly<Gradients<D, Shape>>> {
    const run = () => this.runBackward(dOut, dLse);
    const { q, k, v } = { ...this.#saved };
    return this.#capture(run, { q, k, v, dOut, dLse });
  }

  /** `inputs`: the tensors besides those of the options. */
  #capture<Results>(run: () => Results, inputs: NamedTensors): Captured<Results> {
    const { backend, options } = this.#resolved;
    // The first run loads and uploads what a recording must find in place.
    const results = run();
    const saved = this.#saved;
    const recording = backend.record(run);
    const begin = () => {
      this.#checkUsable();
      this.#saved = saved;
    };
    return new Captured({ backend, recording, results, used: { ...inputs, ...tensorsOf(options) }, begin });
  }

  /** Frees the results, the gradients and the scratch memory. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    collected.unregister(this);
    const { out, lse } = this.#result;
    for (const t of Object.values<Tensor>({ out, lse, ...this.#gradients })) t.dispose();
    this.#forwardScratch.dispose();
    this.#backwardScratch?.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #checkUsable(): void {
    if (this.#disposed) throw new FlashAttnError('ERR_DISPOSED', 'the plan has been disposed');
  }
}

/** The tensors among the options. */
function tensorsOf({ bias, attnMask, alibi, relativeBias, sink, scoreMod, rope }: AttentionOptions): NamedTensors {
  const named: Record<string, AnyTensor | undefined> = {
    bias,
    attnMask: isTensor(attnMask) ? attnMask : undefined,
    alibi: isTensor(alibi) ? alibi : undefined,
    'relativeBias.table': relativeBias?.table,
    sink,
    ...rotaryTables(rope),
  };
  for (const [number, t] of tablesOf(scoreMod).entries()) named[tableName(number)] = t;
  return named;
}

/**
 * Prepares attention for one problem, to be run many times without allocating: results, gradients and scratch memory
 * are made here, once. On CUDA the option `rope` is refused: there it is an operation before the kernel, which makes tensors anew.
 *
 * @throws as `attention`
 */
export function plan<D extends FloatDType = 'float32'>(problem: Problem<D>): Plan<D> {
  return new Plan<D>(resolveProblem(problem));
}
