/** Patterns that cut a map, clip or sequence into parts, against their definitions. */
import {
  axialAttention,
  axialAttentionBackward,
  type FloatDType,
  longnetAttention,
  longnetAttentionBackward,
  swinAttention,
  swinAttentionBackward,
  type Tensor,
  timesformerAttention,
  timesformerAttentionBackward,
  zeros,
} from 'flashattn';
import { describe, expect, it } from 'vitest';
import { GRADIENT_TOLERANCE } from '../../verify/oracle/compare.js';
import { codeOf } from '../support/codeOf.js';
import {
  attend,
  check,
  type Dims,
  data,
  differences,
  eachRow,
  expectClose,
  inputsOf,
  type Key,
  load,
  type Named,
  own,
  type Pair,
  range,
  sumOf,
  values,
} from './regroup.js';

describe('swin', () => {
  interface SwinCase {
    map: readonly [number, number];
    window: readonly [number, number];
    shift: readonly [number, number];
    dims: Pick<Dims, 'batch' | 'heads' | 'kvHeads' | 'dim' | 'valueDim'>;
    biased: boolean;
  }

  it.each<SwinCase>([
    {
      map: [6, 4],
      window: [3, 2],
      shift: [0, 0],
      dims: { batch: 2, heads: 2, kvHeads: 1, dim: 4, valueDim: 3 },
      biased: true,
    },
    {
      map: [5, 7],
      window: [3, 3],
      shift: [1, 1],
      dims: { batch: 1, heads: 2, kvHeads: 2, dim: 3, valueDim: 3 },
      biased: true,
    },
    {
      map: [4, 6],
      window: [2, 3],
      shift: [1, 2],
      dims: { batch: 1, heads: 1, kvHeads: 1, dim: 5, valueDim: 5 },
      biased: false,
    },
    {
      map: [2, 7],
      window: [4, 2],
      shift: [3, 0],
      dims: { batch: 1, heads: 2, kvHeads: 2, dim: 4, valueDim: 4 },
      biased: true,
    },
  ])('%j', ({ map: [height, width], window, shift, dims, biased }) => {
    const d: Dims = { ...dims, tokens: height * width };
    const stride = 2 * window[1] - 1;
    const tableSize = (2 * window[0] - 1) * stride * d.heads;
    const inputs: Named = { ...inputsOf(d, 10), ...(biased && { biasTable: data(tableSize, 14) }) };
    const padded = [height, width].map((n, axis) => Math.ceil(n / (window[axis] ?? 1)) * (window[axis] ?? 1));
    /** Window, region and place within the window of a position on one axis. */
    const place = (at: number, axis: 0 | 1): readonly [number, number, number] => {
      const length = padded[axis] ?? 0;
      const s = (at - shift[axis] + length) % length;
      const region = s < length - window[axis] ? 0 : s < length - shift[axis] ? 1 : 2;
      return [Math.floor(s / window[axis]), region, s % window[axis]];
    };
    const forward = (named: Named): Float64Array =>
      eachRow(d, named, ({ h, i, query, key }) => {
        const [wy, ry, iy] = place(Math.floor(i / width), 0);
        const [wx, rx, ix] = place(i % width, 1);
        const keys: Key[] = [];
        for (const y of range(padded[0] ?? 0)) {
          for (const x of range(padded[1] ?? 0)) {
            const [vy, sy, jy] = place(y, 0);
            const [vx, sx, jx] = place(x, 1);
            if (vy !== wy || vx !== wx || sy !== ry || sx !== rx) continue;
            const bucket = (iy - jy + window[0] - 1) * stride + ix - jx + window[1] - 1;
            keys.push(
              key(y < height && x < width ? y * width + x : -1, {
                bias: named.biasTable?.[bucket * d.heads + h] ?? 0,
              }),
            );
          }
        }
        return attend(query, keys, 1 / Math.sqrt(d.dim)).out;
      });
    const shape = (heads: number, dim: number): number[] => [d.batch, height, width, heads, dim];
    const dOut = data(d.batch * d.tokens * d.heads * d.valueDim, 15);
    const options = {
      window,
      shift,
      ...(biased && { biasTable: load(inputs.biasTable, [tableSize / d.heads, d.heads]) as Tensor }),
    };
    const { out, saved } = swinAttention(
      load(inputs.q, shape(d.heads, d.dim)),
      load(inputs.k, shape(d.kvHeads, d.dim)),
      load(inputs.v, shape(d.kvHeads, d.valueDim)),
      options,
    );
    const { dq, dk, dv, dBiasTable } = swinAttentionBackward(load(dOut, shape(d.heads, d.valueDim)), saved);
    saved.dispose();
    check(inputs, dOut, forward, { out, gradients: { q: dq, k: dk, v: dv, biasTable: dBiasTable } });
  });

  it('refuses bad arguments', () => {
    const q = own(zeros([1, 4, 4, 2, 4]));
    const flat = own(zeros([1, 16, 2, 4])) as Tensor as typeof q;
    expect(codeOf(() => swinAttention(flat, flat, flat, { window: 2 }))).toBe('ERR_SHAPE');
    expect(codeOf(() => swinAttention(q, own(zeros([1, 4, 5, 2, 4])), q, { window: 2 }))).toBe('ERR_SHAPE');
    expect(
      codeOf(() =>
        swinAttention(q, q, own(zeros([1, 4, 4, 2, 4], { dtype: 'float16' })) as Tensor as typeof q, { window: 2 }),
      ),
    ).toBe('ERR_DTYPE');
    expect(codeOf(() => swinAttention(q, q, q, { window: 0 }))).toBe('ERR_OPTION');
    expect(codeOf(() => swinAttention(q, q, q, { window: 2, shift: 2 }))).toBe('ERR_OPTION');
    expect(codeOf(() => swinAttention(q, q, q, { window: 2, tilt: 1 } as { window: number }))).toBe('ERR_OPTION');
    expect(codeOf(() => swinAttention(q, q, q, { window: 2, biasTable: own(zeros([8, 2])) }))).toBe('ERR_SHAPE');
    const { out, saved } = swinAttention(q, q, q, { window: 2 });
    expect(codeOf(() => swinAttentionBackward(flat, saved))).toBe('ERR_SHAPE');
    expect(codeOf(() => axialAttentionBackward(q, saved as never))).toBe('ERR_OPTION');
    out.dispose();
    saved.dispose();
    expect(codeOf(() => swinAttentionBackward(q, saved))).toBe('ERR_DISPOSED');
  });
});

describe('axial', () => {
  it.each([
    { grid: [5], axes: [0], causal: true, dims: { batch: 2, heads: 2, kvHeads: 2, dim: 3, valueDim: 4 } },
    { grid: [3, 4], axes: [0, 1], causal: false, dims: { batch: 2, heads: 2, kvHeads: 1, dim: 4, valueDim: 4 } },
    { grid: [2, 3, 4], axes: [2, 0], causal: true, dims: { batch: 1, heads: 2, kvHeads: 2, dim: 4, valueDim: 2 } },
  ])('%j', ({ grid, axes, causal, dims }) => {
    const d: Dims = { ...dims, tokens: grid.reduce((a, b) => a * b) };
    const inputs = inputsOf(d, 20);
    const coordinates = (token: number): number[] =>
      grid.map((n, axis) => Math.floor(token / grid.slice(axis + 1).reduce((a, b) => a * b, 1)) % n);
    const forward = (named: Named): Float64Array =>
      eachRow(d, named, ({ i, query, key }) => {
        const at = coordinates(i);
        const parts = axes.map((axis) => {
          const line = range(d.tokens).filter((j) => coordinates(j).every((c, a) => a === axis || c === at[a]));
          const keys = line.filter((j) => !causal || j <= i).map((j) => key(j));
          return attend(query, keys, 0.7).out;
        });
        return range(d.valueDim).map((n) => sumOf(parts.map((part) => part[n] ?? NaN)));
      });
    const dOut = data(d.batch * d.tokens * d.heads * d.valueDim, 25);
    const { out, saved } = axialAttention(
      load(inputs.q, [d.batch, ...grid, d.heads, d.dim]),
      load(inputs.k, [d.batch, ...grid, d.kvHeads, d.dim]),
      load(inputs.v, [d.batch, ...grid, d.kvHeads, d.valueDim]),
      { axes, causal, scale: 0.7 },
    );
    const { dq, dk, dv } = axialAttentionBackward(load(dOut, [d.batch, ...grid, d.heads, d.valueDim]), saved);
    saved.dispose();
    check(inputs, dOut, forward, { out, gradients: { q: dq, k: dk, v: dv } });
  });

  it('works in float16', () => {
    const d: Dims = { batch: 1, tokens: 12, heads: 2, kvHeads: 2, dim: 8, valueDim: 8 };
    const inputs = inputsOf(d, 30);
    const shape = [1, 3, 4, 2, 8];
    const run = (dtype: FloatDType): Named => {
      const [q, k, v] = (['q', 'k', 'v'] as const).map((name) => load(inputs[name], shape, dtype));
      if (!q || !k || !v) throw new Error('incomplete inputs');
      const { out, saved } = axialAttention(q, k, v);
      const { dq, dk, dv } = axialAttentionBackward(q, saved);
      saved.dispose();
      return { out: values(out), dq: values(dq), dk: values(dk), dv: values(dv) };
    };
    expectClose(run('float16'), run('float32'), 5e-3);
  });

  it('refuses bad arguments', () => {
    const q = own(zeros([1, 4, 4, 2, 4]));
    const rank3 = own(zeros([4, 2, 4])) as Tensor as typeof q;
    for (const axes of [[], [2], [0, 0], [-1]])
      expect(codeOf(() => axialAttention(q, q, q, { axes }))).toBe('ERR_OPTION');
    expect(codeOf(() => axialAttention(rank3, rank3, rank3))).toBe('ERR_SHAPE');
    expect(codeOf(() => axialAttention(q, own(zeros([1, 4, 4, 3, 4])), own(zeros([1, 4, 4, 3, 4]))))).toBe('ERR_SHAPE');
    expect(codeOf(() => axialAttention(q, own(q.transpose(1, 2)), q))).toBe('ERR_SHAPE');
    expect(codeOf(() => axialAttention(undefined as never, q, q))).toBe('ERR_OPTION');
  });
});

describe('timesformer', () => {
  const sizes = [
    { frames: 3, patches: 4, dims: { batch: 2, heads: 2, kvHeads: 1, dim: 3, valueDim: 3 } },
    { frames: 5, patches: 2, dims: { batch: 1, heads: 1, kvHeads: 1, dim: 4, valueDim: 6 } },
  ];
  const patterns = ['space', 'time', 'officialSpace'] as const;

  it.each(sizes.flatMap((size) => patterns.map((pattern) => ({ ...size, pattern }))))(
    '%j',
    ({ frames, patches, dims, pattern }) => {
      const d: Dims = { ...dims, tokens: 1 + frames * patches };
      const inputs = inputsOf(d, 40);
      const groupOf = (token: number): number =>
        pattern === 'time' ? (token - 1) % patches : Math.floor((token - 1) / patches);
      const forward = (named: Named): Float64Array =>
        eachRow(d, named, ({ i, query, key }) => {
          const seen = (group: number): Key[] =>
            range(d.tokens)
              .filter((j) => j === 0 || groupOf(j) === group)
              .map((j) => key(j));
          const scale = 1 / Math.sqrt(d.dim);
          if (i > 0) return attend(query, seen(groupOf(i)), scale).out;
          if (pattern !== 'officialSpace')
            return attend(
              query,
              range(d.tokens).map((j) => key(j)),
              scale,
            ).out;
          const parts = range(frames).map((frame) => attend(query, seen(frame), scale).out);
          return range(d.valueDim).map((n) => sumOf(parts.map((part) => part[n] ?? NaN)) / frames);
        });
      const dOut = data(d.batch * d.tokens * d.heads * d.valueDim, 45);
      const { out, saved } = timesformerAttention(
        load(inputs.q, [d.batch, d.tokens, d.heads, d.dim]),
        load(inputs.k, [d.batch, d.tokens, d.kvHeads, d.dim]),
        load(inputs.v, [d.batch, d.tokens, d.kvHeads, d.valueDim]),
        { frames, patches, pattern },
      );
      const { dq, dk, dv } = timesformerAttentionBackward(load(dOut, [d.batch, d.tokens, d.heads, d.valueDim]), saved);
      saved.dispose();
      check(inputs, dOut, forward, { out, gradients: { q: dq, k: dk, v: dv } });
    },
  );

  it('refuses bad arguments', () => {
    const q = own(zeros([1, 13, 2, 4]));
    const run = (options: unknown): string => codeOf(() => timesformerAttention(q, q, q, options as never));
    expect(run({ frames: 3, patches: 5, pattern: 'space' })).toBe('ERR_SHAPE');
    expect(run({ frames: 0, patches: 4, pattern: 'space' })).toBe('ERR_OPTION');
    expect(run({ frames: 3, patches: 4, pattern: 'spacetime' })).toBe('ERR_OPTION');
    expect(run(undefined)).toBe('ERR_OPTION');
    expect(run({ frames: 3, patches: 4, pattern: 'space', scale: NaN })).toBe('ERR_OPTION');
  });
});

describe('longnet', () => {
  const cases = [
    {
      lengths: [4, 12],
      ratios: [1, 3],
      causal: false,
      dims: { batch: 2, tokens: 12, heads: 3, kvHeads: 1, dim: 3, valueDim: 4 },
    },
    {
      lengths: [3, 8, 40],
      ratios: [1, 2, 4],
      causal: false,
      dims: { batch: 1, tokens: 13, heads: 4, kvHeads: 2, dim: 4, valueDim: 4 },
    },
    {
      lengths: [5, 9],
      ratios: [2, 4],
      causal: true,
      dims: { batch: 2, tokens: 11, heads: 2, kvHeads: 2, dim: 4, valueDim: 4 },
    },
  ];

  it.each(cases)('%j', ({ lengths, ratios, causal, dims: d }) => {
    const inputs = inputsOf(d, 50);
    const branchKeys = (branch: number, { h, i, key }: Pair): Key[] | undefined => {
      const segment = Math.min(lengths[branch] ?? 0, d.tokens);
      const ratio = ratios[branch] ?? 1;
      const offset = Math.floor(h / Math.ceil(d.heads / ratio));
      const begin = Math.floor(i / segment) * segment;
      if ((i - begin) % ratio !== offset) return undefined;
      const places = range(Math.ceil(segment / ratio)).map((n) => n * ratio + offset);
      const tokens = places.map((at) => (at < segment && begin + at < d.tokens ? begin + at : -1));
      return tokens.filter((j) => !causal || (j >= 0 && j <= i)).map((j) => key(j));
    };
    /** `frozen` holds the weights of the branches by row, as a first pass found them. */
    const forward = (named: Named, frozen?: Map<string, number[]>): Float64Array =>
      eachRow(d, named, (row) => {
        const parts = range(lengths.length).flatMap((branch) => {
          const keys = branchKeys(branch, row);
          return keys ? [attend(row.query, keys, 0.5)] : [];
        });
        const total = Math.log(sumOf(parts.map(({ lse }) => Math.exp(lse))));
        const name = [row.b, row.h, row.i].join();
        const weights = frozen?.get(name) ?? parts.map(({ lse }) => Math.exp(lse - total));
        frozen?.set(name, weights);
        return range(d.valueDim).map((n) => sumOf(parts.map(({ out }, p) => (weights[p] ?? NaN) * (out[n] ?? NaN))));
      });
    const shape = (heads: number, dim: number): number[] => [d.batch, d.tokens, heads, dim];
    const dOut = data(d.batch * d.tokens * d.heads * d.valueDim, 55);
    const { out, saved } = longnetAttention(
      load(inputs.q, shape(d.heads, d.dim)),
      load(inputs.k, shape(d.kvHeads, d.dim)),
      load(inputs.v, shape(d.kvHeads, d.valueDim)),
      { segmentLengths: lengths, dilatedRatios: ratios, causal, scale: 0.5 },
    );
    const gradient = load(dOut, shape(d.heads, d.valueDim));
    const joint = longnetAttentionBackward(gradient, saved);
    const detached = longnetAttentionBackward(gradient, saved, { gradient: 'detached' });
    expect(codeOf(() => longnetAttentionBackward(gradient, saved, { gradient: 'none' as 'joint' }))).toBe('ERR_OPTION');
    saved.dispose();
    check(inputs, dOut, forward, { out, gradients: { q: joint.dq, k: joint.dk, v: joint.dv } });
    const frozen = new Map<string, number[]>();
    forward(inputs, frozen);
    const exact = differences(inputs, dOut, (named) => forward(named, frozen));
    expectClose({ q: values(detached.dq), k: values(detached.dk), v: values(detached.dv) }, exact, GRADIENT_TOLERANCE);
  });

  it('refuses bad arguments', () => {
    const q = own(zeros([1, 8, 2, 4]));
    const run = (segmentLengths: unknown, dilatedRatios: unknown): string =>
      codeOf(() => longnetAttention(q, q, q, { segmentLengths, dilatedRatios } as never));
    expect(run([4, 8], [1])).toBe('ERR_OPTION');
    expect(run([], [])).toBe('ERR_OPTION');
    expect(run([0], [1])).toBe('ERR_OPTION');
    expect(run([4], [1.5])).toBe('ERR_OPTION');
    expect(run(undefined, [1])).toBe('ERR_OPTION');
    const odd = own(zeros([1, 8, 3, 4]));
    expect(codeOf(() => longnetAttention(q, odd, odd, { segmentLengths: [4], dilatedRatios: [1] }))).toBe('ERR_SHAPE');
    expect(codeOf(() => longnetAttentionBackward(q, {} as never))).toBe('ERR_OPTION');
  });
});
