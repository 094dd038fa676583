import { checkInteger, checkNumber, checkOptions, mustBe } from '../base/check.js';
import { optionError } from '../base/errors.js';
import { compile } from '../kernels/elementwise.js';
import { Expression, input, scalar } from '../kernels/expression.js';
import { compute, launchElementwise, reduceAxes } from '../tape/arithmetic.js';
import { allocateTensor, checkTensor, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';

export interface ScheduleOptions {
  /** 'constant'; half a 'cosine' down to `least`; 'wsd' is constant until the last `decaySteps`, which lead down in a line. */
  readonly kind: 'constant' | 'cosine' | 'wsd';
  /** How many steps the whole run has. */
  readonly steps: number;
  /** Steps of a line from 0 up, before everything else. Default 0. */
  readonly warmup?: number;
  /** What is left at the end. Default 0.1 for 'cosine', 0 for 'wsd'. */
  readonly least?: number;
  /** Of 'wsd'. Default a fifth of all. */
  readonly decaySteps?: number;
}

/** What the learning rate is multiplied by at a step, from 0 on: `optimizer.rate = rate(step)`. */
export function schedule(options: ScheduleOptions): (step: number) => number {
  checkOptions(options, ['kind', 'steps', 'warmup', 'least', 'decaySteps']);
  const { kind, steps, warmup = 0, least = kind === 'cosine' ? 0.1 : 0 } = options;
  if (kind !== 'constant' && kind !== 'cosine' && kind !== 'wsd')
    throw mustBe('kind', kind, "'constant', 'cosine' or 'wsd'");
  checkInteger(steps, 'steps', 1);
  checkInteger(warmup, 'warmup', 0, steps);
  checkNumber(least, 'least', 0, 1);
  const decaySteps = options.decaySteps ?? Math.min(Math.ceil(steps / 5), steps - warmup);
  checkInteger(decaySteps, 'decaySteps', 0, steps - warmup);
  return (step) => {
    if (step < warmup) return (step + 1) / warmup;
    if (kind === 'constant') return 1;
    if (kind === 'cosine') {
      const done = Math.min(1, (step - warmup) / Math.max(1, steps - warmup));
      return least + ((1 - least) * (1 + Math.cos(Math.PI * done))) / 2;
    }
    const left = Math.max(0, steps - step);
    return left >= decaySteps ? 1 : least + ((1 - least) * left) / decaySteps;
  };
}

const squares = compile([input(0).square()], 1);
const addition = compile([input(0).add(input(1))], 2);
const norm = input(0).sqrt();
const clipped = Expression.of('div', scalar(0), norm.add(1e-6)).minimum(1);
const scaleOf = compile([norm.less(Number.POSITIVE_INFINITY).where(clipped, Number.NaN), norm], 1);

/** What clipping gives: nothing of it has been read from the device. */
export interface Clipped {
  /**
   * [1]: what gradients are to be multiplied by, min(1, most / (norm + 1e-6)): for `optimizer.step({ gradientScale })`. NaN
   * where the norm is NaN or infinite, and then a step changes nothing.
   */
  readonly scale: Tensor<'float32'>;
  /** [1]: the root of the sum of all squares, before. */
  readonly norm: Tensor<'float32'>;
}

/**
 * Clips gradients by their global norm: the factor for all of them, which the optimizer applies. Pascanu et al. (2013).
 *
 * @param parameters those without a gradient do not count
 * @param most Infinity: the norm is only measured
 * @throws ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function clipGradients(parameters: readonly Tensor[], most: number): Clipped {
  if (most !== Number.POSITIVE_INFINITY) checkNumber(most, 'most', 0);
  const gradients = parameters.flatMap((t, i) => {
    checkTensor(t, `parameter ${i}`);
    return t.grad ? [t.grad as Tensor] : [];
  });
  if (gradients.length === 0) throw optionError('no parameter has a gradient: backward() leaves them');
  const [{ backend }] = gradients as [Tensor];
  const one = [1];
  return tidying(
    () => {
      let total: Tensor | undefined;
      for (const gradient of gradients) {
        const squared = compute(backend, squares, [gradient.detach()], gradient.shape, 'float32');
        const everything = squared.shape.map(() => true);
        const sum = reduceAxes(squared, everything, { reduction: 'sum', dtype: 'float32' }).reshape(one) as Tensor;
        squared.dispose();
        total = total ? compute(backend, addition, [total, sum], one, 'float32') : sum;
      }
      const [scale, norm] = [allocateTensor(backend, one, 'float32'), allocateTensor(backend, one, 'float32')];
      launchElementwise(backend, {
        program: scaleOf,
        inputs: [(total as Tensor).strided('a sum', backend)],
        outputs: [scale.strided('a scale', backend), norm.strided('a norm', backend)],
        scalars: [most],
      });
      return { scale, norm } as unknown as Clipped;
    },
    ({ scale, norm }) => [scale, norm],
  );
}
