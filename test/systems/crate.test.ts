/** CRATE, against its definition row by row. */
import { type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import { CrateBlock, crateBlock, crateIsta, crateMssa, crateMssaPaper } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import {
  type BlockWeights,
  block,
  type CrateDims,
  ista,
  type MssaWeights,
  mssa,
  mssaPaper,
} from '../../verify/oracle/crate.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

interface Case extends CrateDims {
  readonly headDim: number;
  readonly scale?: number;
}

const cases: readonly Case[] = [
  { batch: 2, seq: 7, dim: 6, heads: 2, headDim: 3 },
  { batch: 1, seq: 5, dim: 4, heads: 3, headDim: 2, scale: 0.4 },
  { batch: 1, seq: 1, dim: 3, heads: 1, headDim: 3 },
];

const mssaInputs = ({ batch, seq, dim, heads, headDim }: Case): Inputs => ({
  x: input([batch, seq, dim], 1),
  subspaces: input([heads * headDim, dim], 2, 0.5),
  out: input([dim, heads * headDim], 3, 0.5),
  outBias: input([dim], 4),
});

const blockInputs = (c: Case): Inputs => ({
  ...mssaInputs(c),
  norm1Weight: input([c.dim], 5, 0.2, 1),
  norm1Bias: input([c.dim], 6, 0.2),
  norm2Weight: input([c.dim], 7, 0.2, 1),
  norm2Bias: input([c.dim], 8, 0.2),
  dictionary: input([c.dim, c.dim], 9, 0.5),
});

const without = <T>({ x: _, ...rest }: Named<T>) => rest as never;

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('CRATE'), () => {
    it.each(cases)('subspace attention: %j', (c) => {
      const options = { heads: c.heads, ...(c.scale !== undefined && { scale: c.scale }) };
      checkSystem(
        device,
        mssaInputs(c),
        (t) => crateMssa(t.x, without(t), options),
        (values) => mssa(c, values.x, values as unknown as MssaWeights, c.scale),
      );
    });

    it.each(cases)('with the subspaces as output maps: %j', (c) => {
      const inputs = {
        x: input([c.batch, c.seq, c.dim], 1),
        U: input([c.heads, c.dim, c.headDim], 2, 0.4),
        coefficient: input([1], 3, 1, 0.5),
      };
      checkSystem(
        device,
        inputs,
        (t) => crateMssaPaper(t.x, t.U, t.coefficient),
        (values) => mssaPaper(c, values.x, values.U, values.coefficient[0]),
      );
    });

    it.each([{}, { stepSize: 0.3, lambda: 0.5 }])('sparsification: %j', (options) => {
      checkSystem(
        device,
        { x: input([2, 3, 5], 1), D: input([5, 5], 2, 0.6) },
        (t) => crateIsta(t.x, t.D, options),
        (values) => ista(5, values.x, values.D, options.stepSize ?? 0.1, options.lambda ?? 0.1),
      );
    });

    it.each(cases.slice(0, 2))('block: %j', ({ scale: _, ...c }) => {
      checkSystem(
        device,
        blockInputs(c),
        (t) => crateBlock(t.x, without(t), { heads: c.heads }),
        (values) => block(c, values.x, values as unknown as BlockWeights),
        { gradient: 3e-3 },
      );
    });

    it.each(['float16', 'bfloat16'] as const)('%s with weights of float32', (dtype) => {
      const c = cases[0];
      noGrad(() => {
        const before = memory(device).tensors;
        const t = Object.fromEntries(
          Object.entries(blockInputs(c)).map(([name, { shape, data }]) => [
            name,
            tensor(data, shape, { device, ...(name === 'x' && { dtype }) }) as Tensor,
          ]),
        );
        const values = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const out = crateBlock(t.x, without(t), { heads: c.heads });
        expect(out.dtype).toBe(dtype);
        const exact = block(c, values.x, values as unknown as BlockWeights);
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -6 : 2 ** -3);
        for (const x of [out, ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }]) {
        const c = { ...cases[0], ...empty };
        const { outputs } = run(
          device,
          blockInputs(c),
          (t) => ({ out: crateBlock(t.x, without(t), { heads: c.heads }) }),
          undefined,
        );
        expect(outputs.out).toHaveLength(0);
      }
    });

    it('a layer is the function of its weights, and learns', () => {
      const before = memory(device).tensors;
      const layer = new CrateBlock({ width: 6, heads: 2, stepSize: 0.2, device });
      const x = tensor(input([2, 4, 6], 1).data, [2, 4, 6], { device }) as Tensor;
      const out = layer.forward(x);
      const { norm1, norm2, subspaces, dictionary } = layer;
      const weights = {
        norm1Weight: norm1.weight,
        norm1Bias: norm1.bias,
        norm2Weight: norm2.weight,
        norm2Bias: norm2.bias,
        subspaces: subspaces.weight,
        out: layer.out.weight,
        outBias: layer.out.bias,
        dictionary,
      };
      const own = noGrad(() => crateBlock(x, weights, { heads: 2, stepSize: 0.2 }));
      expect(out.toFloat32Sync()).toEqual(own.toFloat32Sync());
      out.backward(own);
      for (const [name, t] of layer.namedParameters()) expect(t.grad?.shape, name).toEqual(t.shape);
      for (const t of [x, out, own]) t.dispose();
      layer.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });
});

describe('bad arguments of CRATE', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const x = of(1, 5, 6);
  const weights = { subspaces: of(6, 6), out: of(6, 6), outBias: of(6) };

  it.each<[string, () => unknown, RegExp]>([
    ['rank', () => crateMssa(of(5, 6), weights, { heads: 2 }), /^ERR_SHAPE: x has shape \[5, 6\]/],
    ['heads', () => crateMssa(x, weights, { heads: 4 }), /^ERR_SHAPE: weights.subspaces has shape .* the 4 heads/],
    ['no heads', () => crateMssa(x, weights, {} as never), /^ERR_OPTION: heads is undefined/],
    ['out', () => crateMssa(x, { ...weights, out: of(6, 5) }, { heads: 2 }), /^ERR_SHAPE: weights.out has shape/],
    ['scale', () => crateMssa(x, weights, { heads: 2, scale: Number.NaN }), /^ERR_OPTION: scale is NaN/],
    ['U', () => crateMssaPaper(x, of(2, 5, 3), of(1)), /^ERR_SHAPE: subspaces has shape/],
    ['coefficient', () => crateMssaPaper(x, of(2, 6, 3), of(2)), /^ERR_SHAPE: coefficient has shape/],
    ['dictionary', () => crateIsta(x, of(6, 5)), /^ERR_SHAPE: dictionary has shape/],
    ['lambda', () => crateIsta(x, of(6, 6), { lambda: '1' as never }), /^ERR_OPTION: lambda is "1"/],
    ['norms', () => crateBlock(x, weights as never, { heads: 2 }), /^ERR_OPTION: weights.norm1Weight is undefined/],
    ['a width', () => new CrateBlock({ width: 6, heads: 4, device }), /^ERR_OPTION: width 6 is no multiple/],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });
});
