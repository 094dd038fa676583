/** Layers with a state: against float64, in pieces, with gradients to every parameter, and in a model that learns. */
import {
  capture,
  concat,
  type DeviceName,
  memory,
  mul,
  noGrad,
  parameter,
  scope,
  sum,
  Tensor,
  tensor,
  zeros,
} from 'flashattn';
import { AdamW, type AttentionLayerOptions, GPT, type Layer, TransformerBlock } from 'flashattn/nn';
import {
  GatedDeltaNet,
  GatedLinearAttention,
  GatedRetention,
  type LayerStep,
  LinearAttention,
  linearAttention,
  Mamba2,
  MultiScaleRetention,
  ShortConvolution,
  SlidingWindowAttention,
  Yoco,
  YocoCrossDecoder,
  YocoSelfDecoder,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { layers as byName } from '../../examples/gpt/layers.js';
import { maxError } from '../../verify/oracle/compare.js';
import { normal } from '../../verify/oracle/random.js';
import * as oracle from '../../verify/oracle/recurrentLayers.js';
import { codeOf, errorOf } from '../support/codeOf.js';
import { devicesWith } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named } from './taped.js';

/** A layer with a state of whatever kind. */
interface AnyLayer extends Layer {
  next(x: Tensor, state?: never): LayerStep<unknown>;
}

const width = 12;
const makers: Record<string, (device: DeviceName) => AnyLayer> = {
  LinearAttention: (device) => new LinearAttention({ width, heads: 3, device, seed: 1 }),
  MultiScaleRetention: (device) => new MultiScaleRetention({ width, heads: 3, device, seed: 1 }),
  GatedLinearAttention: (device) => new GatedLinearAttention({ width, heads: 3, device, seed: 1 }),
  Mamba2: (device) => new Mamba2({ width, heads: 4, stateDim: 8, groups: 2, device, seed: 1 }),
  GatedDeltaNet: (device) => new GatedDeltaNet({ width, heads: 3, device, seed: 1 }),
  GatedRetention: (device) => new GatedRetention({ width, heads: 3, device, seed: 1 }),
  SlidingWindowAttention: (device) => new SlidingWindowAttention({ width, heads: 3, window: 4, device, seed: 1 }),
  YocoSelfDecoder: (device) => new YocoSelfDecoder({ width, heads: 3, layers: 2, hidden: 8, device, seed: 1 }),
  'YocoSelfDecoder in a window': (device) =>
    new YocoSelfDecoder({ width, heads: 3, layers: 2, hidden: 8, window: 3, device, seed: 1 }),
  YocoCrossDecoder: (device) =>
    new YocoCrossDecoder({ width, heads: 6, kvHeads: 2, layers: 2, hidden: 8, device, seed: 1 }),
  Yoco: (device) => new Yoco({ width, selfHeads: 3, heads: 6, kvHeads: 2, layers: 4, hidden: 8, device, seed: 1 }),
  ShortConvolution: (device) => new ShortConvolution(width, { bias: true, device, seed: 1 }),
};

const on = (device: DeviceName, shape: readonly number[], seed: number): Tensor =>
  tensor(
    Float32Array.from(
      normal(
        shape.reduce((a, b) => a * b, 1),
        seed,
      ),
    ),
    shape,
    { device },
  ) as Tensor;

/** Weights around what they begin with, for checks that see more than a small signal. */
const weightsOf = (layer: AnyLayer, names: Readonly<Record<string, string>>, scale: number): Inputs =>
  Object.fromEntries(
    Object.entries(names).map(([name, place], i) => {
      const t = layer.namedParameters().get(place) as Tensor;
      const { shape, data } = input(t.shape, 60 + i, scale);
      const own = t.toFloat32Sync();
      return [name, { shape, data: data.map((x, n) => Math.fround(x + (own[n] as number))) }];
    }),
  );

/** Runs a layer with other tensors in the place of its weights. */
function withWeights(layer: AnyLayer, names: Readonly<Record<string, string>>, t: Named<Tensor>): Tensor {
  for (const [name, place] of Object.entries(names)) {
    const path = place.split('.');
    const last = path.pop() as string;
    const owner = path.reduce<unknown>((object, key) => (object as Record<string, unknown>)[key], layer);
    (owner as Record<string, unknown>)[last] = t[name];
  }
  return layer.forward(t.x as Tensor);
}

const projections = { q: 'qProj.weight', k: 'kProj.weight', v: 'vProj.weight', g: 'gProj.weight', o: 'oProj.weight' };
const glaNames = {
  ...projections,
  down: 'gkProj.0.weight',
  up: 'gkProj.1.weight',
  upBias: 'gkProj.1.bias',
  norm: 'normWeight',
};
const deltaNames = {
  ...projections,
  a: 'aProj.weight',
  b: 'bProj.weight',
  qConvolution: 'qConvolution.weight',
  kConvolution: 'kConvolution.weight',
  vConvolution: 'vConvolution.weight',
  logRates: 'logRates',
  stepBias: 'stepBias',
  norm: 'normWeight',
};
const mambaNames = {
  in: 'inProj.weight',
  convolution: 'convolution.weight',
  convolutionBias: 'convolution.bias',
  logRates: 'logRates',
  stepBias: 'stepBias',
  skip: 'skip',
  norm: 'normWeight',
  out: 'outProj.weight',
};
const common = { batch: 2, seq: 7, width, epsilon: 1e-5 };
const definitions: Record<
  string,
  { readonly names: Readonly<Record<string, string>>; readonly define: (w: oracle.Weights) => Float64Array }
> = {
  GatedLinearAttention: {
    names: glaNames,
    define: (w) => oracle.glaLayer({ ...common, heads: 3, keyDim: 2, valueDim: 4 }, w),
  },
  GatedDeltaNet: {
    names: deltaNames,
    define: (w) => oracle.gatedDeltaNetLayer({ ...common, heads: 3, headDim: 3, valueDim: 6 }, w),
  },
  Mamba2: {
    names: mambaNames,
    define: (w) => oracle.mamba2Layer({ ...common, heads: 4, headDim: 6, stateDim: 8, groups: 2 }, w),
  },
};

for (const { device, present, title, isSlow } of devicesWith('recurrence', 'matmul', 'reduce'))
  describe.skipIf(!present)(title('recurrent layers'), () => {
    it.each(Object.entries(definitions))('%s is its definition, with gradients of every weight', (name, c) => {
      const layer = (makers[name] as (device: DeviceName) => AnyLayer)(device);
      const inputs = { x: input([2, 7, width], 50), ...weightsOf(layer, c.names, 0.3) };
      expect(Object.keys(c.names)).toHaveLength(layer.namedParameters().size);
      layer.dispose();
      checkSystem(device, inputs, (t) => withWeights(layer, c.names, t), c.define);
    });

    it.each(Object.entries(makers))('%s: a sequence in one call and in several', (_, make) => {
      const layer = make(device);
      const x = on(device, [2, 11, width], 51);
      noGrad(() => {
        const whole = layer.forward(x);
        const inPieces = scope(() => {
          const parts: Tensor[] = [];
          let state: unknown;
          for (const [from, to] of [
            [0, 3],
            [3, 4],
            [4, 4],
            [4, 5],
            [5, 11],
          ] as const) {
            const step = layer.next(x.slice(1, from, to).contiguous(), state as never);
            parts.push(step.out);
            state = step.state;
          }
          return concat(parts, 1) as Tensor;
        });
        expect(maxError(inPieces.toFloat32Sync(), whole.toFloat32Sync())).toBeLessThan(2e-5);
      });
      layer.dispose();
    });

    it.each(Object.entries(makers))('%s: gradients reach every parameter, and nothing is left behind', (_, make) => {
      const before = memory(device).tensors;
      const layer = make(device);
      const x = on(device, [2, 9, width], 52);
      const weights = on(device, [2, 9, width], 53);
      scope(() => sum(mul(layer.forward(x), weights) as Tensor).backward());
      for (const [name, t] of layer.namedParameters()) {
        const gradient = t.grad?.toFloat32Sync() ?? [];
        expect([name, gradient.length]).toEqual([name, t.size]);
        expect([name, gradient.every(Number.isFinite), gradient.some((g) => g !== 0)]).toEqual([name, true, true]);
      }
      layer.dispose();
      x.dispose();
      weights.dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it.each(Object.entries(makers))('%s: no token sees those behind it', (_, make) => {
      const layer = make(device);
      noGrad(() => {
        const values = Float32Array.from(normal(9 * width, 54));
        const other = values.map((value, n) => (n >= 6 * width ? -value : value));
        const [a, b] = [values, other].map((data) =>
          layer.forward(tensor(data, [1, 9, width], { device }) as Tensor).toFloat32Sync(),
        ) as [Float32Array, Float32Array];
        expect(b.subarray(0, 6 * width)).toEqual(a.subarray(0, 6 * width));
        expect(b.subarray(6 * width)).not.toEqual(a.subarray(6 * width));
      });
      layer.dispose();
    });

    it.each(Object.entries(makers))('%s in bfloat16 is near what it is in float32', (_, make) => {
      const layer = make(device);
      noGrad(() => {
        const x = on(device, [2, 9, width], 55);
        const low = tensor(x.toFloat32Sync(), x.shape, { device, dtype: 'bfloat16' }) as Tensor;
        const [exact, out] = [layer.forward(x), layer.forward(low)];
        expect(out.dtype).toBe('bfloat16');
        const scale = Math.max(...exact.toFloat32Sync().map(Math.abs));
        expect(maxError(out.toFloat32Sync(), exact.toFloat32Sync()) / scale).toBeLessThan(0.1);
      });
      layer.dispose();
    });

    it.each(Object.entries(makers))('%s: a captured step is the step itself', (_, make) => {
      const layer = make(device);
      const x = parameter(on(device, [2, 9, width], 57));
      const step = () => {
        x.grad = undefined;
        const out = layer.forward(x);
        const loss = sum(mul(out, out) as Tensor);
        loss.backward();
        return { loss, gradient: x.grad as unknown as Tensor };
      };
      const { loss: one } = scope(step);
      const direct = [one.toFloat32Sync()[0], (x.grad as unknown as Tensor).toFloat32Sync()];
      const captured = capture(step);
      const { loss, gradient } = captured.replay();
      expect([loss.toFloat32Sync()[0], gradient.toFloat32Sync()]).toEqual(direct);
      captured.dispose();
      layer.dispose();
    });

    it('LinearAttention is causal linear attention between its projections', () => {
      const layer = new LinearAttention({ width, heads: 3, device, seed: 1 });
      noGrad(() => {
        const x = on(device, [2, 9, width], 58);
        const [q, k, v] = [layer.qProj, layer.kProj, layer.vProj].map((projection) =>
          projection.forward(x).reshape([2, 9, 3, 4]),
        ) as unknown as [Tensor, Tensor, Tensor];
        const rows = linearAttention(q, k, v, { causal: true }) as Tensor;
        const expected = layer.outProj.forward(rows.reshape([2, 9, width])).toFloat32Sync();
        expect(maxError(layer.forward(x).toFloat32Sync(), expected)).toBeLessThan(1e-6);
      });
      layer.dispose();
    });

    it("RetNet's forms agree", () => {
      const x = on(device, [2, 13, width], 56);
      const [recurrent, parallel, chunkwise] = (['recurrent', 'parallel', 'chunkwise'] as const).map((form) => {
        const layer = new MultiScaleRetention({ width, heads: 3, form, chunk: 4, device, seed: 2, epsilon: 1e-12 });
        const out = noGrad(() => layer.forward(x).toFloat32Sync());
        layer.dispose();
        return out;
      }) as [Float32Array, Float32Array, Float32Array];
      expect(maxError(parallel, recurrent)).toBeLessThan(2e-5);
      expect(maxError(chunkwise, recurrent)).toBeLessThan(2e-5);
    });

    it.each(Object.keys(byName))('a model with %s in the place of attention learns', (name) => {
      const attention = byName[name] as (options: AttentionLayerOptions) => Layer;
      const model = GPT.llama<Layer>({
        vocabulary: 7,
        context: 16,
        layers: 2,
        width: 24,
        heads: 3,
        attention,
        device,
        seed: 3,
      });
      expect(model.positions).toBeUndefined();
      const optimizer = new AdamW(model.parameters(), { learningRate: 1e-2 });
      // The next token is the one three places before.
      const ids = Int32Array.from({ length: 4 * 17 }, (_, n) => ([1, 4, 2][(n % 17) % 3] as number) ^ (n > 34 ? 1 : 0));
      const part = (from: number) =>
        tensor(
          Int32Array.from({ length: 4 * 16 }, (_, n) => ids[Math.floor(n / 16) * 17 + (n % 16) + from] as number),
          [4, 16],
          { device },
        );
      const [inputs, targets] = [part(0), part(1)];
      const losses: number[] = [];
      for (let step = 0; step < (isSlow ? 3 : 24); step++) {
        losses.push(
          scope(() => {
            const loss = model.loss(inputs as never, targets as never);
            loss.backward();
            return loss.toFloat32Sync()[0] as number;
          }),
        );
        optimizer.step();
        optimizer.zeroGrad();
      }
      expect(losses[0]).toBeGreaterThan(1.5);
      expect(losses.at(-1)).toBeLessThan((isSlow ? 0.95 : 0.5) * (losses[0] as number));
      optimizer.dispose();
      model.dispose();
      inputs.dispose();
      targets.dispose();
    });
  });

describe('bad options of recurrent layers', () => {
  const device: DeviceName = 'wasm';
  const own = { width: 12, heads: 3, device } as const;
  const bad = (options: object) => options as never;
  it.each<[string, () => { dispose(): void }, RegExp]>([
    ['heads', () => new MultiScaleRetention({ ...own, heads: 5 }), /^ERR_OPTION: width 12 is no multiple of heads 5/],
    ['an odd head dim', () => new MultiScaleRetention({ ...own, heads: 4 }), /^ERR_OPTION: the head dim is 3/],
    ['a value width', () => new MultiScaleRetention({ ...own, valueWidth: 16 }), /^ERR_OPTION: valueWidth 16/],
    ['a form', () => new MultiScaleRetention(bad({ ...own, form: 'quick' })), /^ERR_OPTION: form is "quick"/],
    [
      'an unknown option',
      () => new GatedLinearAttention(bad({ ...own, head: 2 })),
      /^ERR_OPTION: .*did you mean "heads"/,
    ],
    ['a key width', () => new GatedLinearAttention({ ...own, keyWidth: 10 }), /^ERR_OPTION: keyWidth 10/],
    ['heads of 64', () => new Mamba2({ width: 12, device }), /^ERR_OPTION: heads is 0.375/],
    ['groups', () => new Mamba2({ ...own, groups: 2 }), /^ERR_OPTION: groups is 2; it must divide heads, 3/],
    ['a state dim', () => new Mamba2({ ...own, stateDim: 300 }), /^ERR_OPTION: stateDim is 300/],
    ['a convolution', () => new GatedDeltaNet({ ...own, convolution: 0 }), /^ERR_OPTION: size is 0/],
    ['a value dim', () => new GatedDeltaNet({ ...own, headDim: 200 }), /^ERR_OPTION: expandValues \* headDim is 400/],
    [
      'odd layers',
      () => new Yoco({ width: 12, selfHeads: 3, heads: 3, layers: 3, hidden: 4, device }),
      /^ERR_OPTION: layers is 3/,
    ],
    ['kv heads', () => new YocoCrossDecoder({ ...own, layers: 1, hidden: 4, kvHeads: 2 }), /^ERR_OPTION: kvHeads is 2/],
    ['a window', () => new YocoSelfDecoder({ ...own, layers: 1, hidden: 4, window: 0 }), /^ERR_OPTION: window is 0/],
  ])('%s', (_, make, message) => {
    const before = memory(device).tensors;
    expect(errorOf(make)).toMatch(message);
    expect(memory(device).tensors).toBe(before);
  });

  it('tokens and states that do not fit', () => {
    for (const make of Object.values(makers)) {
      const layer = make(device);
      const x = zeros([1, 3, width], { device }) as Tensor;
      expect(codeOf(() => layer.forward(zeros([1, 3, width + 1], { device }) as Tensor))).toBe('ERR_SHAPE');
      expect(codeOf(() => layer.forward(zeros([3, width], { device }) as Tensor))).toBe('ERR_SHAPE');
      const { state } = layer.next(x);
      const other = zeros([2, 3, width], { device }) as Tensor;
      expect(codeOf(() => layer.next(other, state as never))).toBe('ERR_SHAPE');
      layer.dispose();
    }
    const layer = new MultiScaleRetention(own);
    const x = zeros([1, 3, width], { device }) as Tensor;
    expect(codeOf(() => layer.next(x, bad({ kv: x, scale: x, place: 3 })))).toBe('ERR_OPTION');
    layer.dispose();
  });

  it('states of other layers', () => {
    const kinds = Object.entries(makers).map(([name, make]) => {
      const layer = make(device);
      const x = zeros([1, 5, width], { device }) as Tensor;
      return { name, layer, x, state: layer.next(x).state };
    });
    const shapeOf = (state: unknown): unknown =>
      state instanceof Tensor
        ? state.shape
        : typeof state === 'object'
          ? Object.entries(state ?? {}).map(([key, value]) => [key, shapeOf(value)])
          : 0;
    for (const own of kinds)
      for (const other of kinds)
        if (JSON.stringify(shapeOf(own.state)) !== JSON.stringify(shapeOf(other.state)))
          expect([own.name, other.name, codeOf(() => own.layer.next(own.x, other.state as never))]).toEqual([
            own.name,
            other.name,
            expect.stringMatching(/^ERR_(SHAPE|OPTION|DTYPE)$/),
          ]);
    for (const { layer } of kinds) layer.dispose();
  });

  it('attention that is no layer, or comes with options of softmax attention', () => {
    const block = (options: object) => () => new TransformerBlock({ ...own, ...options } as never);
    const attention = () => new GatedLinearAttention(own);
    const before = memory(device).tensors;
    expect(errorOf(block({ attention: 3 }))).toMatch(/^ERR_OPTION: attention is 3; it must be a function/);
    expect(errorOf(block({ attention: () => 3 }))).toMatch(/^ERR_OPTION: attention\(\) is 3; it must be a module/);
    for (const option of [{ rope: {} }, { kvHeads: 1 }, { window: [3, 0] }])
      expect(errorOf(block({ attention, ...option }))).toMatch(
        /^ERR_OPTION: (rope|kvHeads|window) is given, and attention/,
      );
    expect(memory(device).tensors).toBe(before);
  });
});
