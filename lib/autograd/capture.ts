// A step that the host describes once, and the device runs again and again.
import { checkFunction, checkOptions } from '../base/check.js';
import { FlashAttnError, optionError } from '../base/errors.js';
import { backendFor, type DeviceName } from '../devices/registry.js';
import type { Backend, Recording } from '../kernels/device.js';
import { type Captured, capturing } from '../tape/captures.js';
import { checkSynchronous, tensorsIn } from '../tape/scope.js';
import { freeingRecords } from '../tape/tape.js';
import { sameShape } from '../tensor/shape.js';
import type { AnyTensor } from '../tensor/tensor.js';
import { seeing, tidying } from '../tensor/track.js';

const forgotten = new FinalizationRegistry<Recording>((recording) => recording.dispose());

/** What `capture` gives. */
export class CapturedStep<T> implements Disposable {
  /** What the function gave: tensors in it are overwritten by each replay. They need no gradient. */
  readonly result: T;
  readonly #recording: Recording;
  readonly #captured: Captured;
  readonly #own: readonly AnyTensor[];
  #disposed = false;

  /** @internal Use `capture`. */
  constructor(result: T, recording: Recording, captured: Captured, own: readonly AnyTensor[]) {
    this.result = result;
    this.#recording = recording;
    this.#captured = captured;
    this.#own = own;
    forgotten.register(this, recording, this);
  }

  /**
   * Queues the step once more, over what the tensors that it uses hold by then, and returns at once.
   *
   * @throws ERR_DISPOSED, ERR_DEVICE
   */
  replay(): T {
    if (this.#disposed) throw new FlashAttnError('ERR_DISPOSED', 'what was captured has been disposed');
    const { checks, hooks } = this.#captured;
    for (const check of checks) check();
    for (const hook of hooks) hook();
    this.#recording.replay();
    return this.result;
  }

  /** Frees the recording with its memory, and the tensors of `result` that were made in it. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    forgotten.unregister(this);
    for (const t of [...this.#own, ...this.#captured.kept]) t[Symbol.dispose]();
    this.#recording.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

export interface CaptureOptions {
  /** Where the step runs. Default the device of the tensors that it makes. */
  readonly device?: DeviceName;
}

/** Whether a function runs that is about to be captured, or is being captured. */
let running = false;

interface Ran<T> {
  readonly result: T;
  /** All tensors that were made, also those that have been disposed. */
  readonly made: ReadonlySet<AnyTensor>;
}

/** What `step` gives, as within `scope`, without what a gradient of it would need. When it throws, nothing that it made is left. */
function run<T>(step: () => T): Ran<T> {
  const made = new Set<AnyTensor>();
  const all = () => {
    running = true;
    const result = step();
    checkSynchronous(result, 'the function of capture()');
    return result;
  };
  try {
    const result = seeing(
      (t) => made.add(t as AnyTensor),
      () =>
        tidying(
          () => freeingRecords(all, () => []),
          (value) => [...tensorsIn(value)],
        ),
    );
    for (const t of tensorsIn(result)) if (made.has(t) && !t.track?.isLeaf) t.track = undefined;
    return { result, made };
  } catch (error) {
    for (const t of made) t.dispose();
    throw error;
  } finally {
    running = false;
  }
}

function backendOf(made: ReadonlySet<AnyTensor>, device: DeviceName | undefined): Backend {
  if (device !== undefined) return backendFor(device);
  const [backend, ...others] = new Set([...made].map((t) => t.backend));
  if (!backend) throw optionError('the function of capture() makes no tensor: tell where it runs, with options.device');
  if (others.length > 0)
    throw optionError(
      `the function of capture() runs on ${[backend, ...others].map((b) => b.device).join(' and ')}; it must run on one device`,
    );
  return backend;
}

/** Whether every element has a place of its own. */
const hasOwnPlaces = (t: AnyTensor) => t.shape.every((n, axis) => n <= 1 || t.strides[axis] !== 0);

/** Lets the tensors of one result hold what those of another do, which is disposed. @throws ERR_OPTION where they differ */
function move(from: Ran<unknown>, to: Ran<unknown>): void {
  const [source, target] = [[...tensorsIn(from.result)], [...tensorsIn(to.result)]];
  const isSame = (a: AnyTensor, b: AnyTensor | undefined) =>
    b !== undefined && a.dtype === b.dtype && sameShape(a.shape, b.shape);
  if (source.length !== target.length || !source.every((t, i) => isSame(t, target[i])))
    throw optionError(
      'the function of capture() gives other tensors in its second run than in its first: it must do the same every time',
    );
  for (const [i, t] of source.entries()) {
    const into = target[i] as AnyTensor;
    if (t === into || !to.made.has(into)) continue;
    if (!t.disposed && hasOwnPlaces(into)) t.copyInto(into);
  }
}

/**
 * Runs a step and records it: `replay()` runs it again without the host's work, on the processor from a list of launches,
 * on CUDA as one graph. A step of training may be captured as a whole, with its backward pass and its optimizer.
 *
 * ```ts
 * const [ids, targets] = [tensor(firstIds, [8, 256]), tensor(firstTargets, [8, 256])];
 * const captured = capture(() => {
 *   const loss = model.loss(ids, targets);
 *   loss.backward();
 *   optimizer.step();
 *   optimizer.zeroGrad();
 *   return loss;
 * });
 * for (;;) {
 *   ids.write(nextIds);
 *   targets.write(nextTargets);
 *   captured.replay();
 *   console.log(await captured.result.data());
 * }
 * ```
 *
 * `step` runs twice: first as always, which is the first step and leaves its results in `result`, then without computing
 * anything, to be recorded. What differs from step to step must be in tensors that `step` only uses: `write` to them
 * between replays. An optimizer of `flashattn/nn` counts its steps and takes its rate, for `optimizer.rate` is set between
 * replays too; a function that is given as the seed of random numbers is asked before every replay, as `Dropout` of
 * `flashattn/nn` does. Everything else that the host decides is as it was. Ids that the host writes are compared with the
 * size of their table before each replay.
 *
 * The gradient of a parameter that has one when the step begins is added to in place, in every replay; one that the step
 * makes is made anew, and holds numbers from the first replay on. Tensors that the step uses stay in memory until
 * `dispose()`. What it computes in between has memory of its own, which it reuses within itself.
 *
 * @param step synchronous; what it makes besides its result is disposed, as within `scope`
 * @throws ERR_OPTION where `step` reads a tensor, writes to one, makes one of the host's numbers or draws random numbers
 *   from a seed that is a number (dropout of attention always), ERR_OUT_OF_MEMORY, and what `step` throws. Its first run
 *   has then taken place.
 */
export function capture<T>(step: () => T, options: CaptureOptions = {}): CapturedStep<T> {
  checkFunction(step, 'step');
  checkOptions(options, ['device']);
  if (running) throw optionError('capture() within a function that is being captured');
  const first = run(step);
  const disposeFirst = () => {
    for (const t of tensorsIn(first.result)) if (first.made.has(t)) t.dispose();
  };
  let second: Ran<T> | undefined;
  let recording: Recording | undefined;
  try {
    const backend = backendOf(first.made, options.device);
    let captured: Captured | undefined;
    recording = backend.record(() => {
      captured = capturing(() => {
        second = run(step);
      });
    });
    const { result, made } = second as unknown as Ran<T>;
    move(first, { result, made });
    const own = [...tensorsIn(result)].filter((t) => made.has(t));
    return new CapturedStep(result, recording, captured as unknown as Captured, own);
  } catch (error) {
    recording?.dispose();
    for (const t of second?.made ?? []) t.dispose();
    throw error;
  } finally {
    disposeFirst();
  }
}
