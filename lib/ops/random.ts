// Random numbers of Philox4x32-10 (Salmon et al. 2011): each element's are a function of the seed and of its place alone, so
// every device makes the same, bit for bit.
import { checkNumber, checkOptions, mustBe } from '../base/check.js';
import { checkFloatDType, type FloatDType } from '../base/dtype.js';
import { backendFor, type DeviceName } from '../devices/registry.js';
import type { Backend } from '../kernels/device.js';
import { compile, fitsOneLaunch, type Program } from '../kernels/elementwise.js';
import { Expression, input, scalar } from '../kernels/expression.js';
import type { Flat } from '../kernels/operand.js';
import { launchElementwise, writeNumbers } from '../tape/arithmetic.js';
import { beforeReplay, isCapturing, keepWithCapture, refuseCapture } from '../tape/captures.js';
import { drawn } from '../tape/draws.js';
import { record } from '../tape/tape.js';
import { checkShape, type Widen } from '../tensor/shape.js';
import { allocateTensor, allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';

/** From 0 to 2^64 - 1. */
export type Seed = number | bigint;

/** A seed, or what is asked for the next one at every call, and within `capture` before every replay. */
export type SeedSource = Seed | (() => Seed);

export interface RandomOptions<D extends FloatDType = FloatDType> {
  readonly seed: SeedSource;
  /** Default 'float32'. */
  readonly dtype?: D;
  /** Default 'auto'. */
  readonly device?: DeviceName;
}

/** The two words of a seed. @throws ERR_OPTION */
export function checkSeed(seed: unknown, argument: string): readonly [low: number, high: number] {
  const whole = typeof seed === 'bigint' ? seed : Number.isSafeInteger(seed) ? BigInt(seed as number) : -1n;
  if (whole < 0n || whole >= 2n ** 64n) throw mustBe(argument, seed, 'an integer from 0 to 2^64 - 1');
  return [Number(whole & 0xffffffffn), Number(whole >> 32n)];
}

type SeedWords = ReturnType<typeof checkSeed>;

/** The 16 bits that float32, and so every kernel, writes exactly. */
const halvesOf = (words: SeedWords): readonly number[] => words.flatMap((word) => [word & 0xffff, word >>> 16]);

/** What kernels take a seed from. `what` is drawn as by 'dropout'. */
function seedFor(backend: Backend, source: SeedSource, what: string): SeedWords | Flat {
  if (typeof source !== 'function') {
    const words = checkSeed(source, 'seed');
    refuseCapture(what, '; a seed that is a function is asked before each of them');
    return words;
  }
  return drawn(() => {
    const next = () => checkSeed(source(), 'what the function that is the seed gives');
    if (!isCapturing()) return next();
    const halves = keepWithCapture(unwatched(() => allocateTensor(backend, [4], 'int32', 'hostWritten')));
    beforeReplay(halves, what, () => writeNumbers(halves, halvesOf(next())));
    return halves.flat('the seed', backend);
  });
}

const uniformBetween = compile([Expression.leaf('uniform', 0).mul(scalar(1)).add(scalar(0))], 0);
const normalAround = compile([Expression.leaf('normal', 0).mul(scalar(1)).add(scalar(0))], 0);

function draw(program: Program, shape: Shape, options: RandomOptions, scalars: readonly number[]): Tensor {
  const axes = checkShape(shape, 'shape');
  const { dtype: requested = 'float32', device } = options;
  const dtype = checkFloatDType(requested, 'dtype');
  if (typeof options.seed !== 'function') checkSeed(options.seed, 'seed');
  const backend = backendFor(device);
  const seed = seedFor(backend, options.seed, 'random numbers');
  return allocating(backend, (allocate) => {
    const result = allocate(axes, dtype);
    launchElementwise(backend, {
      program,
      inputs: [],
      outputs: [result.strided('the result', backend)],
      scalars,
      seed,
    });
    return result;
  });
}

/**
 * Numbers from [low, high), in steps of 2^-24 of the difference; what lies close below `high` may be rounded to it.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function uniform<const S extends Shape, D extends FloatDType = 'float32'>(
  shape: S,
  options: RandomOptions<D> & { readonly low?: number; readonly high?: number },
): Tensor<D, Widen<S>> {
  checkOptions(options, ['seed', 'dtype', 'device', 'low', 'high']);
  const { low = 0, high = 1 } = options;
  checkNumber(low, 'low');
  checkNumber(high, 'high', low);
  return draw(uniformBetween, shape, options, [low, high - low]) as unknown as Tensor<D, Widen<S>>;
}

/**
 * Numbers of a normal distribution, by Box and Muller (1958).
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function normal<const S extends Shape, D extends FloatDType = 'float32'>(
  shape: S,
  options: RandomOptions<D> & { readonly mean?: number; readonly std?: number },
): Tensor<D, Widen<S>> {
  checkOptions(options, ['seed', 'dtype', 'device', 'mean', 'std']);
  const { mean = 0, std = 1 } = options;
  checkNumber(mean, 'mean');
  checkNumber(std, 'std', 0);
  return draw(normalAround, shape, options, [mean, std]) as unknown as Tensor<D, Widen<S>>;
}

export interface DropoutOptions {
  /** The probability of an element to become 0, from 0 to below 1; the others are multiplied by 1 / (1 - p). */
  readonly p: number;
  readonly seed: SeedSource;
}

const kept = compile(
  [
    Expression.leaf('uniform', 0)
      .less(scalar(0))
      .where(0, input(0).mul(scalar(1))),
  ],
  1,
);

/** A row-major copy, which nobody records. */
function inOrder(x: Tensor): Tensor {
  const own = x.detach();
  try {
    return own.contiguous();
  } finally {
    own.dispose();
  }
}

function drop(backend: Backend, x: Tensor, scalars: readonly number[], seed: SeedWords | Flat): Tensor {
  return allocating(backend, (allocate) => {
    const result = allocate(x.shape, x.dtype);
    const outputs = [result.strided('the result', backend)];
    // In one launch: several would each begin to count elements anew.
    const fits = fitsOneLaunch(x.shape, [x.strided('x', backend), ...outputs]);
    const source = fits ? x.detach() : inOrder(x);
    try {
      launchElementwise(backend, { program: kept, inputs: [source.strided('x', backend)], outputs, scalars, seed });
    } finally {
      source.dispose();
    }
    return result;
  });
}

/**
 * Elements dropped at random. The same seed drops the same ones, also in the gradient. Srivastava et al. (2014).
 *
 * @throws ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function dropout<D extends FloatDType, S extends Shape>(x: Tensor<D, S>, options: DropoutOptions): Tensor<D, S> {
  checkTensor(x, 'x');
  checkOptions(options, ['p', 'seed']);
  const { p } = options;
  if (!(typeof p === 'number' && p >= 0 && p < 1)) throw mustBe('p', p, 'from 0 to below 1');
  const scalars = [p, 1 / (1 - p)];
  const source = x as unknown as Tensor;
  const { backend } = source;
  source.operand('x', backend);
  const seed = seedFor(backend, options.seed, 'dropout');
  const result = drop(backend, source, scalars, seed);
  record('dropout', [source], [result], [], ([gradient]) => [gradient && drop(backend, gradient, scalars, seed)]);
  return result as unknown as Tensor<D, S>;
}
