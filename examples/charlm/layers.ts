/**
 * The layers of a transformer other than attention, each with its backward pass written out by hand.
 *
 * Every layer owns the arrays it writes, so nothing is allocated while training. `forward` keeps what `backward`
 * needs; `backward` takes the gradient of the loss with respect to the output, adds to the gradients of the layer's
 * parameters, and returns the gradient with respect to the input. R is the number of rows, batch * context.
 */
import { matmul, matrix, transpose } from './matmul.js';
import type { LinearWeights, NormWeights, Parameter } from './parameters.js';

/** y = x W + b, with x [R, inputs] and y [R, outputs]. */
export class Linear {
  readonly output: Float32Array;
  readonly dInput: Float32Array;
  #input: Float32Array = new Float32Array();

  constructor(
    readonly weights: LinearWeights,
    readonly rows: number,
  ) {
    this.output = new Float32Array(rows * weights.outputs);
    this.dInput = new Float32Array(rows * weights.inputs);
  }

  forward(input: Float32Array): Float32Array {
    const { inputs, outputs, weight, bias } = this.weights;
    this.#input = input;
    for (let r = 0; r < this.rows; r++) this.output.set(bias.value, r * outputs);
    matmul(
      matrix(this.output, this.rows, outputs),
      matrix(input, this.rows, inputs),
      matrix(weight.value, inputs, outputs),
      true,
    );
    return this.output;
  }

  backward(dOutput: Float32Array): Float32Array {
    const { inputs, outputs, weight, bias } = this.weights;
    const dy = matrix(dOutput, this.rows, outputs);
    const x = matrix(this.#input, this.rows, inputs);
    matmul(matrix(weight.gradient, inputs, outputs), transpose(x), dy, true);
    for (let r = 0, i = 0; r < this.rows; r++) {
      for (let c = 0; c < outputs; c++, i++) bias.gradient[c] += dOutput[i];
    }
    matmul(matrix(this.dInput, this.rows, inputs), dy, transpose(matrix(weight.value, inputs, outputs)));
    return this.dInput;
  }
}

/** y = gain * (x - mean) / sqrt(variance + epsilon) + bias, over each row of x [R, width]. */
export class LayerNorm {
  readonly #output: Float32Array;
  readonly #dInput: Float32Array;
  /** x after centring and scaling, before gain and bias: all that backward needs of x */
  readonly #normalized: Float32Array;
  readonly #inverseStd: Float32Array;
  readonly #width: number;

  constructor(
    readonly weights: NormWeights,
    readonly rows: number,
  ) {
    this.#width = weights.gain.value.length;
    this.#output = new Float32Array(rows * this.#width);
    this.#dInput = new Float32Array(rows * this.#width);
    this.#normalized = new Float32Array(rows * this.#width);
    this.#inverseStd = new Float32Array(rows);
  }

  forward(input: Float32Array): Float32Array {
    const width = this.#width;
    const gain = this.weights.gain.value;
    const bias = this.weights.bias.value;
    const output = this.#output;
    const normalized = this.#normalized;
    for (let r = 0; r < this.rows; r++) {
      const row = r * width;
      let mean = 0;
      for (let c = 0; c < width; c++) mean += input[row + c];
      mean /= width;
      let variance = 0;
      for (let c = 0; c < width; c++) variance += (input[row + c] - mean) ** 2;
      const inverseStd = 1 / Math.sqrt(variance / width + 1e-5);
      this.#inverseStd[r] = inverseStd;
      for (let c = 0; c < width; c++) {
        const x = (input[row + c] - mean) * inverseStd;
        normalized[row + c] = x;
        output[row + c] = gain[c] * x + bias[c];
      }
    }
    return output;
  }

  backward(dOutput: Float32Array): Float32Array {
    const width = this.#width;
    const gain = this.weights.gain.value;
    const dGain = this.weights.gain.gradient;
    const dBias = this.weights.bias.gradient;
    const dInput = this.#dInput;
    const normalized = this.#normalized;
    for (let r = 0; r < this.rows; r++) {
      const row = r * width;
      // With g = gain * dOutput: dInput = (g - mean(g) - normalized * mean(g * normalized)) / std.
      let meanG = 0;
      let meanGX = 0;
      for (let c = 0; c < width; c++) {
        const x = normalized[row + c];
        const d = dOutput[row + c];
        dGain[c] += d * x;
        dBias[c] += d;
        meanG += gain[c] * d;
        meanGX += gain[c] * d * x;
      }
      meanG /= width;
      meanGX /= width;
      const inverseStd = this.#inverseStd[r];
      for (let c = 0; c < width; c++) {
        dInput[row + c] = (gain[c] * dOutput[row + c] - meanG - normalized[row + c] * meanGX) * inverseStd;
      }
    }
    return dInput;
  }
}

const GELU_SLOPE = 2 * Math.sqrt(2 / Math.PI);
const GELU_CUBE = 0.044715;

/** GELU in its tanh form, written with the logistic function: y = x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)). */
export class Gelu {
  readonly #output: Float32Array;
  readonly #dInput: Float32Array;
  readonly #sigmoid: Float32Array;
  #input: Float32Array = new Float32Array();

  constructor(size: number) {
    this.#output = new Float32Array(size);
    this.#dInput = new Float32Array(size);
    this.#sigmoid = new Float32Array(size);
  }

  forward(input: Float32Array): Float32Array {
    const output = this.#output;
    const sigmoid = this.#sigmoid;
    this.#input = input;
    for (let i = 0; i < output.length; i++) {
      const x = input[i];
      const s = 1 / (1 + Math.exp(-GELU_SLOPE * (x + GELU_CUBE * x * x * x)));
      sigmoid[i] = s;
      output[i] = x * s;
    }
    return output;
  }

  backward(dOutput: Float32Array): Float32Array {
    const dInput = this.#dInput;
    const input = this.#input;
    const sigmoid = this.#sigmoid;
    for (let i = 0; i < dInput.length; i++) {
      const x = input[i];
      const s = sigmoid[i];
      const slope = GELU_SLOPE * (1 + 3 * GELU_CUBE * x * x);
      dInput[i] = dOutput[i] * (s + x * s * (1 - s) * slope);
    }
    return dInput;
  }
}

/** Row r of the output is the embedding of token r: a row of the table [vocabulary, width]. */
export class Embedding {
  #tokens: Int32Array = new Int32Array();

  constructor(
    readonly table: Parameter,
    readonly width: number,
  ) {}

  forward(tokens: Int32Array, output: Float32Array): void {
    const { table, width } = this;
    this.#tokens = tokens;
    tokens.forEach((token, r) => {
      output.set(table.value.subarray(token * width, (token + 1) * width), r * width);
    });
  }

  backward(dOutput: Float32Array): void {
    const { table, width } = this;
    this.#tokens.forEach((token, r) => {
      for (let c = 0; c < width; c++) table.gradient[token * width + c] += dOutput[r * width + c];
    });
  }
}

/** Mean over rows of -log softmax(logits)[target], in nats. */
export class CrossEntropy {
  readonly #dLogits: Float32Array;
  #targets: Int32Array = new Int32Array();

  constructor(
    readonly rows: number,
    readonly classes: number,
  ) {
    this.#dLogits = new Float32Array(rows * classes);
  }

  forward(logits: Float32Array, targets: Int32Array): number {
    const { rows, classes } = this;
    const probabilities = this.#dLogits;
    this.#targets = targets;
    let total = 0;
    for (let r = 0; r < rows; r++) {
      const row = r * classes;
      // Subtracting the largest logit changes nothing but keeps exp from overflowing.
      let max = -Infinity;
      for (let c = 0; c < classes; c++) if (logits[row + c] > max) max = logits[row + c];
      let sum = 0;
      for (let c = 0; c < classes; c++) {
        const e = Math.exp(logits[row + c] - max);
        probabilities[row + c] = e;
        sum += e;
      }
      for (let c = 0; c < classes; c++) probabilities[row + c] /= sum;
      total += Math.log(sum) + max - logits[row + targets[r]];
    }
    return total / rows;
  }

  /** The gradient of softmax and logarithm together is the probabilities less one at the target. */
  backward(): Float32Array {
    const { rows, classes } = this;
    const dLogits = this.#dLogits;
    for (let r = 0; r < rows; r++) dLogits[r * classes + this.#targets[r]] -= 1;
    for (let i = 0; i < dLogits.length; i++) dLogits[i] /= rows;
    return dLogits;
  }
}

/** a += b: what every residual connection does, forward to activations and backward to gradients. */
export function addTo(a: Float32Array, b: Float32Array): void {
  for (let i = 0; i < a.length; i++) a[i] += b[i];
}
