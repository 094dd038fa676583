import { checkBoolean, checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { shapeError, show } from '../base/errors.js';
import { compile } from '../kernels/elementwise.js';
import { input, scalar } from '../kernels/expression.js';
import { add, div, fused, mul, sqrt, square } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { compute } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { withoutRecording } from '../tape/tape.js';
import type { Tensor } from '../tensor/tensor.js';
import { InPlace, Optimizer, type ParameterGroup, type Slot, type StepNumbers } from './optimizers.js';

export interface MuonOptions {
  /** Default 0.02. */
  readonly learningRate: number;
  /** How much of the running mean of gradients a step keeps. Default 0.95. */
  readonly momentum: number;
  /** Whether a step looks ahead along the mean (Nesterov). Default true. */
  readonly nesterov: boolean;
  /** How much of the parameter is taken off, times the learning rate. Default 0. */
  readonly weightDecay: number;
  /** Newton-Schulz iterations. Default 5. */
  readonly iterations: number;
}

const average = new InPlace(([mean], gradient, _, [momentum, rest]) => [mean.mul(momentum).add(gradient.mul(rest))]);

/** gradient, mean and perhaps the scale of the gradient; the rest of 1, momentum. */
const ahead = [false, true].map((scaled) => {
  const gradient = scaled ? input(0).mul(input(2)) : input(0);
  return compile([gradient.mul(scalar(0)).add(input(1).mul(scalar(1)))], scaled ? 3 : 2);
});

// The scale is in the direction already.
const move = new InPlace(
  ([p], direction, [rate, kept], [length]) => [p.mul(kept).sub(direction.mul(rate.mul(length)))],
  (direction) => direction,
);

// Its singular values come near 1 in few steps, rather than to 1 in many.
const [linear, cubic, quintic] = [3.4445, -4.775, 2.0315];

const polynomial = fused(function newtonSchulz(gram, squared) {
  return gram.mul(cubic).add(squared.mul(quintic));
});

/** The nearest matrix whose singular values are all (nearly) 1, of a matrix in float32. */
function orthogonalized(matrix: Tensor, iterations: number): Tensor {
  const isTall = matrix.shape[0] > matrix.shape[1];
  const wide = isTall ? matrix.transpose(0, 1) : matrix;
  let x: Tensor = div(wide, add(sqrt(sum(square(wide))), 1e-7));
  for (let i = 0; i < iterations; i++) {
    const gram = matmul(x, x.transpose(0, 1));
    x = add(mul(x, linear), matmul(polynomial(gram, matmul(gram, gram)), x));
  }
  return isTall ? x.transpose(0, 1) : x;
}

/**
 * Momentum whose matrices are orthogonalized by Newton-Schulz iterations, in float32. Jordan et al., "Muon: An optimizer for
 * hidden layers in neural networks" (2024). It is for matrices of hidden layers; embeddings, the head, gains and biases are
 * left to another optimizer, such as `AdamW`.
 */
export class Muon extends Optimizer<MuonOptions> {
  /** @throws ERR_OPTION; ERR_SHAPE for a parameter that is no matrix */
  constructor(parameters: readonly (Tensor | ParameterGroup<MuonOptions>)[], options: Partial<MuonOptions> = {}) {
    checkOptions(options, ['learningRate', 'momentum', 'nesterov', 'weightDecay', 'iterations']);
    const defaults = { learningRate: 0.02, momentum: 0.95, nesterov: true, weightDecay: 0, iterations: 5, ...options };
    super(parameters, defaults, ['momentum'], (all) => {
      checkNumber(all.learningRate, 'learningRate', 0);
      checkNumber(all.momentum, 'momentum', 0, 1);
      checkNumber(all.weightDecay, 'weightDecay', 0);
      checkBoolean(all.nesterov, 'nesterov');
      checkInteger(all.iterations, 'iterations', 1);
    });
    for (const [i, { parameter }] of this.slots.entries())
      if (parameter.shape.length !== 2)
        throw shapeError(`parameter ${i} has shape ${show(parameter.shape)}; Muon is for matrices`);
  }

  protected override numbersOf({ learningRate, weightDecay }: MuonOptions): readonly number[] {
    const rate = learningRate * this.rate;
    return [rate, 1 - rate * weightDecay];
  }

  protected override update(
    { parameter, options, moments }: Slot<MuonOptions>,
    numbers: StepNumbers,
    gradient: Tensor,
    scale: Tensor | undefined,
  ): void {
    const { momentum, nesterov, iterations } = options;
    const { backend, shape } = parameter;
    const mean = moments.get('momentum') as Tensor;
    average.run({ targets: [mean], gradient, scale, fixed: [momentum, 1 - momentum] });
    withoutRecording(() =>
      scope(() => {
        const inputs = [gradient, mean, ...(scale ? [scale] : [])];
        const direction = nesterov
          ? compute(backend, ahead[scale ? 1 : 0], inputs, shape, 'float32', [1 - momentum, momentum])
          : mean;
        const orthogonal = orthogonalized(direction, iterations);
        // Rows of a tall matrix are as long as those of a square one then.
        const length = Math.sqrt(Math.max(1, shape[0] / shape[1]));
        move.run({ targets: [parameter], gradient: orthogonal, scale, numbers, fixed: [length] });
      }),
    );
  }
}
