import { checkInteger, checkNumber, checkOptions, mustBe } from '../base/check.js';

export interface YarnOptions {
  /** How much longer sequences become. */
  readonly factor: number;
  /** Positions that the model has been trained for before. */
  readonly originalLength: number;
  /** Dims that turn at least so often within the original length keep their frequency. Default 32. */
  readonly betaFast?: number;
  /** Dims that turn at most so often within it are slowed down by the factor; between both, in part. Default 1. */
  readonly betaSlow?: number;
}

export interface RopeFrequencyOptions {
  /** How many dims are turned, even. */
  readonly dims: number;
  /** Of the wavelengths. Default 10,000. */
  readonly base?: number;
  /** Default none: frequencies as they are in RoPE. */
  readonly yarn?: YarnOptions;
}

/** A ramp without a length would divide by 0. */
const shortestRamp = 0.001;

/**
 * What each pair of dims is turned by at each position, base^(-2 i / dims), or less of it by YaRN for sequences that have
 * become longer: Peng et al., "YaRN" (2023), arXiv:2309.00071, "NTK-by-parts", as the code of DeepSeek-V3 has it.
 *
 * @returns [dims / 2]
 * @throws ERR_OPTION
 */
export function ropeFrequencies(options: RopeFrequencyOptions): Float64Array {
  checkOptions(options, ['dims', 'base', 'yarn']);
  const { dims, base = 10_000, yarn } = options;
  if (checkInteger(dims, 'dims', 2, 256) % 2 === 1) throw mustBe('dims', dims, 'even');
  if (checkNumber(base, 'base', 1) === 1) throw mustBe('base', base, 'a finite number > 1');
  const plain = Float64Array.from({ length: dims / 2 }, (_, pair) => base ** ((-2 * pair) / dims));
  if (yarn === undefined) return plain;
  checkOptions(yarn, ['factor', 'originalLength', 'betaFast', 'betaSlow'], 'yarn');
  const { factor, originalLength, betaFast = 32, betaSlow = 1 } = yarn;
  checkNumber(factor, 'yarn.factor', 1);
  checkInteger(originalLength, 'yarn.originalLength', 1);
  if (checkNumber(betaSlow, 'yarn.betaSlow', 0) === 0) throw mustBe('yarn.betaSlow', betaSlow, 'a finite number > 0');
  checkNumber(betaFast, 'yarn.betaFast', betaSlow);
  const pairTurning = (times: number) =>
    (dims * Math.log(originalLength / (times * 2 * Math.PI))) / (2 * Math.log(base));
  const first = Math.max(Math.floor(pairTurning(betaFast)), 0);
  const last = Math.min(Math.ceil(pairTurning(betaSlow)), dims - 1);
  const length = last === first ? shortestRamp : last - first;
  return plain.map((frequency, pair) => {
    const slowed = Math.min(Math.max((pair - first) / length, 0), 1);
    return frequency * (1 - slowed + slowed / factor);
  });
}

/**
 * What YaRN (Peng et al. 2023, arXiv:2309.00071) multiplies logits by, as DeepSeek-V3 has it: (0.1 mscale ln(factor) + 1)^2.
 */
export const yarnScale = ({ factor }: Pick<YarnOptions, 'factor'>, mscale = 1): number =>
  (0.1 * mscale * Math.log(factor) + 1) ** 2;
