import type { Shape4 } from '../attention/attention.js';
import { noGrad } from '../autograd/autograd.js';
import { checkBoolean, checkInteger, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import type { DeviceName } from '../devices/registry.js';
import { type Initial, type ModuleOptions, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Linear } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { cast } from '../ops/cast.js';
import { pad } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { checkPositions, within } from './inputs.js';
import { checkTokens, headDimOf } from './recurrentLayer.js';
import { type LshHashing, type LshOptions, lshRotations, reformerAttention } from './reformer.js';

export interface ReformerLayerOptions
  extends ModuleOptions,
    Pick<LshHashing, 'numBuckets'>,
    Pick<LshOptions, 'chunksBefore' | 'chunksAfter' | 'duplicates'> {
  readonly width: number;
  readonly heads: number;
  /** Entries of a chunk of the sorted list; of a shorter sequence all. */
  readonly chunkLength: number;
  /** How many times tokens are hashed. Default 1. */
  readonly rounds?: number;
  /** Default false. */
  readonly causal?: boolean;
  /** Of the projections, which have no biases. Default PyTorch's. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'numBuckets', 'chunkLength', 'rounds', 'chunksBefore', 'chunksAfter'] as const),
  ...(['causal', 'duplicates', 'initial'] as const),
] as const satisfies readonly (keyof ReformerLayerOptions)[];

interface Mask {
  /** Which positions are real, [batch, seq]. */
  readonly mask?: Tensor<'bool', Shape>;
}

/**
 * Self-attention of a Reformer (Kitaev et al. 2020, arXiv:2001.04451): `reformerAttention`, with one projection to what is
 * query and key, and one to values, of sequences of any length. The rotations that it hashes with are drawn once and have no
 * gradient, so that the same tokens give the same result; the original draws them for every call, as `drawRotations` does
 * when it is asked to.
 */
export class ReformerAttention extends Module {
  readonly qkProj: Linear;
  readonly vProj: Linear;
  readonly outProj: Linear;
  /** [heads, head dim, rounds, half the sum of the factors of numBuckets], float32 */
  rotations: Tensor;
  readonly width: number;
  readonly heads: number;
  readonly headDim: number;
  readonly numBuckets: number | readonly number[];
  readonly chunkLength: number;
  readonly chunksBefore: number;
  readonly chunksAfter: number;
  readonly causal: boolean;
  readonly duplicates: 'count' | 'share';
  readonly #seed: Seeds;

  constructor(options: ReformerLayerOptions) {
    super();
    checkOptions(options, names);
    const { width, heads, numBuckets, chunkLength, rounds = 1, chunksBefore = 1, chunksAfter = 0, initial } = options;
    const { causal = false, duplicates = 'count' } = options;
    this.width = checkInteger(width, 'width', 1);
    this.heads = checkInteger(heads, 'heads', 1);
    this.headDim = headDimOf(width, 'width', heads);
    this.chunkLength = checkInteger(chunkLength, 'chunkLength', 1);
    this.chunksBefore = checkInteger(chunksBefore, 'chunksBefore', 0);
    this.chunksAfter = checkInteger(chunksAfter, 'chunksAfter', 0);
    this.causal = checkBoolean(causal, 'causal');
    this.duplicates = checkWord(duplicates, 'duplicates', ['count', 'share']);
    this.numBuckets = numBuckets;
    checkInteger(rounds, 'rounds', 1);
    this.#seed = Seeds.of(options.seed);
    const all = { ...pick(options, moduleOptionNames), seed: this.#seed };
    const linear = () => new Linear(width, width, { ...all, bias: false, ...(initial && { initial }) });
    try {
      this.qkProj = linear();
      this.vProj = linear();
      this.outProj = linear();
      const device = options.device === undefined ? {} : { device: options.device };
      const drawn = { heads, dim: this.headDim, rounds, numBuckets, seed: this.#seed.next(), ...device };
      this.rotations = unwatched(() => lshRotations(drawn)) as Tensor;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * @param x [batch, seq, width]
   * @returns [batch, seq, width]
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  forward(x: Tensor, options: Mask = {}): Tensor {
    const [batch, seq] = checkTokens(x, this.width);
    checkOptions(options, ['mask']);
    if (options.mask !== undefined) checkPositions(options.mask, x);
    const { heads, headDim, rotations, numBuckets, causal, duplicates } = this;
    const chunkLength = Math.max(1, Math.min(this.chunkLength, seq));
    const padded = Math.ceil(seq / chunkLength) * chunkLength;
    // A list of few chunks is seen as a whole, and no chunk twice.
    const chunks = (rotations.shape[2] * padded) / chunkLength;
    const isWhole = seq <= chunkLength;
    const chunksBefore = isWhole ? 0 : Math.min(this.chunksBefore, chunks - 1);
    const chunksAfter = isWhole ? 0 : Math.min(this.chunksAfter, chunks - 1 - chunksBefore);
    return scope(() => {
      const filledUp = (t: Tensor, axes: number) =>
        padded === seq
          ? t
          : pad(
              t,
              Array.from({ length: axes }, (_, axis) => [0, axis === 1 ? padded - seq : 0] as const),
            );
      const own = (projection: Linear) =>
        filledUp(projection.forward(x).reshape([batch, seq, heads, headDim]) as Tensor, 4) as unknown as Tensor<
          FloatDType,
          Shape4
        >;
      const mask =
        padded === seq
          ? options.mask
          : cast(
              options.mask
                ? filledUp(cast(options.mask, 'float32') as Tensor, 2)
                : within(Array<number>(batch).fill(seq), padded, x).reshape([batch, padded]),
              'bool',
            );
      const { out } = reformerAttention(own(this.qkProj), own(this.vProj), {
        ...{ numBuckets, rotations: rotations as Tensor<'float32', Shape>, chunkLength, chunksBefore, chunksAfter },
        ...{ causal, duplicates },
        ...(mask && { mask: mask as Tensor<'bool', Shape> }),
      });
      const joined = (out as unknown as Tensor).slice(1, 0, seq).contiguous();
      return this.outProj.forward(joined.reshape([batch, seq, this.width]));
    });
  }

  /** Other rotations, the next of the seed's, in place. */
  drawRotations(): void {
    const { heads, headDim: dim, numBuckets, rotations } = this;
    noGrad(() =>
      scope(() => {
        const device = rotations.device as DeviceName;
        const drawn = lshRotations({
          heads,
          dim,
          rounds: rotations.shape[2],
          numBuckets,
          seed: this.#seed.next(),
          device,
        });
        drawn.copyInto(rotations as never);
      }),
    );
  }
}
