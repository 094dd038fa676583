import { attention } from '../attention/attention.js';
import {
  checkBoolean,
  checkInteger,
  checkOptions as checkNames,
  checkNumber,
  checkObject,
  mustBe,
} from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { type RopeAngles, rope } from '../ops/rope.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkQkv, narrow, type Sequence, wide } from './inputs.js';
import { checkOptions, type ScaleOption, scaleOf } from './saved.js';

export interface XposTableOptions {
  /** How many positions, from 0 on. */
  readonly length: number;
  /** The head dim, even. */
  readonly dim: number;
  /** Of the wavelengths. Default 10,000. */
  readonly base?: number;
  /** Positions over which a pair of dims decays by its factor. Default 512. */
  readonly scaleBase?: number;
  /** Default 'auto'. */
  readonly device?: DeviceName;
}

/** What `xposTables` makes; the turned q . k depends on the distance alone, as long as both are of the same tables. */
export interface XposTables {
  readonly queries: RopeAngles;
  readonly keys: RopeAngles;
}

/** Factors of more decades than these leave float32, in products too. */
const mostLogarithm = 80;

/**
 * The tables of xPos: pair f of dims is turned by angle p base^(-2 f / dim) at position p, as in `rope`, and multiplied by
 * zeta_f^((p - ceil(length / 2)) / scaleBase) in queries and by its inverse in keys, zeta_f = (2 f + 0.4 dim) / (1.4 dim).
 * Sun et al., "A Length-Extrapolatable Transformer" (2022), arXiv:2212.10554, as torchscale has it. Make them once for all
 * calls.
 *
 * @throws ERR_OPTION, also where a factor would leave the range of float32, as with `scaleBase` 512 beyond 65,000 positions;
 *   ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function xposTables(options: XposTableOptions): XposTables {
  checkNames(options, ['length', 'dim', 'base', 'scaleBase', 'device']);
  const { length, dim, base = 10_000, scaleBase = 512, device } = options;
  checkInteger(length, 'length', 1);
  if (checkInteger(dim, 'dim', 2, 256) % 2 === 1) throw mustBe('dim', dim, 'even');
  if (checkNumber(base, 'base', 0) === 0) throw mustBe('base', base, 'a finite number > 0');
  if (checkNumber(scaleBase, 'scaleBase', 0) === 0) throw mustBe('scaleBase', scaleBase, 'a finite number > 0');
  const centre = Math.ceil(length / 2);
  const pairs = dim / 2;
  const logZeta = (pair: number) => Math.log((2 * pair + 0.4 * dim) / (1.4 * dim));
  if ((-logZeta(0) * centre) / scaleBase > mostLogarithm)
    throw optionError(
      `length is ${length} and scaleBase ${scaleBase}; scaleBase must be at least ${Math.ceil((-logZeta(0) * centre) / mostLogarithm)} for factors that float32 holds`,
    );
  const where = device === undefined ? {} : { device };
  const table = (sign: 1 | -1, f: (angle: number) => number) =>
    tensor(
      Float32Array.from({ length: length * pairs }, (_, at) => {
        const [position, pair] = [Math.floor(at / pairs), at % pairs];
        const factor = Math.exp((sign * logZeta(pair) * (position - centre)) / scaleBase);
        return factor * f(position * base ** (-pair / pairs));
      }),
      [length, pairs],
      where,
    );
  return scope(() => ({
    queries: { cos: table(1, Math.cos), sin: table(1, Math.sin) },
    keys: { cos: table(-1, Math.cos), sin: table(-1, Math.sin) },
  }));
}

/**
 * Queries or keys x [..., length, heads, dim], turned and scaled by their side of `xposTables` for as many positions.
 *
 * @throws as `rope`
 */
export const xpos = <D extends FloatDType, S extends Shape>(x: Tensor<D, S>, side: RopeAngles): Tensor<D, S> =>
  rope(x, side, { pairs: 'interleaved' });

export interface XposOptions extends ScaleOption {
  /** `xposTables` of this head dim, for at least as many positions as there are keys. */
  readonly tables: XposTables;
  /** Query i sees keys up to its position. Default true: of later keys the decay would be growth. */
  readonly causal?: boolean;
}

/** Of as many positions as there are keys. */
const rowsOf = ({ cos, sin }: RopeAngles, keys: number): RopeAngles => ({
  cos: cos.slice(0, 0, keys),
  sin: sin.slice(0, 0, keys),
});

function checkTables(tables: unknown, q: Sequence, keys: number): asserts tables is XposTables {
  checkObject(tables, 'tables');
  const dim = q.shape[3];
  for (const side of ['queries', 'keys'] as const) {
    checkObject((tables as XposTables)[side], `tables.${side}`);
    for (const name of ['cos', 'sin'] as const) {
      const t = (tables as XposTables)[side][name];
      checkTensor(t, `tables.${side}.${name}`);
      if (t.shape.length !== 2 || t.shape[0] < keys || 2 * t.shape[1] !== dim)
        throw shapeError(
          `tables.${side}.${name} has shape ${show(t.shape)}; it must be [at least ${keys} positions, ${dim} / 2]`,
        );
      t.operand(`tables.${side}.${name}`, q.backend);
    }
  }
}

/**
 * Softmax attention with xPos (Sun et al. 2022, arXiv:2212.10554): see `xposTables`. Keys are at positions 0 to Nk - 1, and
 * queries are the last Nq of these. float16 is computed in float32, whose range the factors need.
 *
 * @param q [batch, Nq, heads, dim], Nq at most Nk
 * @param k [batch, Nk, kv heads, dim]; heads a multiple of kv heads
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim], and lse [batch, heads, Nq]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function xposAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: XposOptions,
): { readonly out: Sequence<D>; readonly lse: Tensor<'float32', Shape> } {
  checkQkv(q, k, v, { grouped: true });
  checkOptions(options, ['tables', 'causal']);
  const { tables, causal = true } = options;
  checkBoolean(causal, 'causal');
  const [queries, keys] = [q.shape[1], k.shape[1]];
  if (queries > keys) throw shapeError(`q has ${queries} positions and k ${keys}; queries are the last of the keys`);
  checkTables(tables, q, keys);
  return scope(() => {
    const [query, key, value] = [q, k, v].map((t) => (q.dtype === 'float16' ? wide(t) : t)) as [
      Sequence,
      Sequence,
      Sequence,
    ];
    const angles = { ...rowsOf(tables.queries, keys), keys: rowsOf(tables.keys, keys) };
    const rope = { ...angles, pairs: 'interleaved' } as const;
    const { out, lse } = attention<FloatDType, Shape>(query, key, value, { ...scaleOf(options), causal, rope });
    return { out: narrow(out, q), lse };
  });
}
