import type { Random } from './random.js';

/** A trainable array with its gradient. Backward passes add to the gradient; `zeroGradients` starts a new step. */
export interface Parameter {
  readonly name: string;
  readonly value: Float32Array;
  readonly gradient: Float32Array;
  /** Weight decay is for the matrices of linear layers, not for gains, biases and embeddings. */
  readonly decay: boolean;
}

export interface LinearWeights {
  readonly inputs: number;
  readonly outputs: number;
  /** [inputs, outputs], so that y = x W + b */
  readonly weight: Parameter;
  /** [outputs] */
  readonly bias: Parameter;
}

export interface NormWeights {
  /** [width] */
  readonly gain: Parameter;
  /** [width] */
  readonly bias: Parameter;
}

export interface BlockWeights {
  readonly attentionNorm: NormWeights;
  /** width -> query, key and value of every head */
  readonly qkv: LinearWeights;
  readonly projection: LinearWeights;
  readonly mlpNorm: NormWeights;
  readonly expand: LinearWeights;
  readonly contract: LinearWeights;
}

export interface ModelConfig {
  readonly vocabulary: number;
  readonly layers: number;
  readonly heads: number;
  readonly headDim: number;
  /** See `AttentionShape`. */
  readonly slopes: readonly number[];
}

/**
 * All weights of the model, kept apart from the code that applies them, so that models of different batch and context
 * (one to train, one to generate) share them.
 */
export class Weights {
  readonly all: Parameter[] = [];
  readonly tokenEmbedding: Parameter;
  readonly blocks: readonly BlockWeights[];
  readonly finalNorm: NormWeights;
  readonly head: LinearWeights;

  constructor(
    readonly config: ModelConfig,
    random: Random,
  ) {
    const { vocabulary, layers } = config;
    const width = config.heads * config.headDim;
    const inner = 4 * width;
    const add = (name: string, size: number, std: number, decay = false): Parameter => {
      const value = new Float32Array(size);
      if (std > 0) for (let i = 0; i < size; i++) value[i] = std * random.normal();
      const parameter = { name, value, gradient: new Float32Array(size), decay };
      this.all.push(parameter);
      return parameter;
    };
    const linear = (name: string, inputs: number, outputs: number): LinearWeights => ({
      inputs,
      outputs,
      // Inputs of unit variance then give outputs of unit variance.
      weight: add(`${name}.weight`, inputs * outputs, 1 / Math.sqrt(inputs), true),
      bias: add(`${name}.bias`, outputs, 0),
    });
    const norm = (name: string): NormWeights => {
      const gain = add(`${name}.gain`, width, 0);
      gain.value.fill(1);
      return { gain, bias: add(`${name}.bias`, width, 0) };
    };

    this.tokenEmbedding = add('tokenEmbedding', vocabulary * width, 0.5);
    this.blocks = Array.from({ length: layers }, (_, i) => ({
      attentionNorm: norm(`block${i}.attentionNorm`),
      qkv: linear(`block${i}.qkv`, width, 3 * width),
      projection: linear(`block${i}.projection`, width, width),
      mlpNorm: norm(`block${i}.mlpNorm`),
      expand: linear(`block${i}.expand`, width, inner),
      contract: linear(`block${i}.contract`, inner, width),
    }));
    this.finalNorm = norm('finalNorm');
    this.head = linear('head', width, vocabulary);
  }

  get count(): number {
    return this.all.reduce((sum, parameter) => sum + parameter.value.length, 0);
  }

  zeroGradients(): void {
    for (const parameter of this.all) parameter.gradient.fill(0);
  }
}
