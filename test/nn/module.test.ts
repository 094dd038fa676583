import { describe, expect, it } from 'vitest';
import { type DType, memory, noGrad, parameter, type Shape, scope, type Tensor, tensor } from '../../lib/index.js';
import {
  Dropout,
  Embedding,
  LayerNorm,
  Linear,
  loadCheckpoint,
  Module,
  openSafetensors,
  RMSNorm,
  Seeds,
  Sequential,
  saveCheckpoint,
} from '../../lib/nn/index.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';
import { modelOf, randomize, weightsOf } from './models.js';

const at = temporaryFolder();
const device = 'wasm';
const options = { device, seed: 3 } as const;
const numbers = (values: number[], shape: Shape, dtype: DType = 'float32') =>
  tensor(values, shape, { device, dtype }) as Tensor;

/** Tensors and modules alone and in arrays, one of each at two places. */
class Every extends Module {
  readonly first = new Linear(2, 3, options);
  readonly list = [new Linear(3, 3, { ...options, bias: false }), this.first];
  readonly again = this.first;
  scale: Tensor = own([1, 2]);
  shift: Tensor = this.scale;
  pieces: Tensor[] = [own([3]), this.scale, own([4])];
  readonly note = 'no tensor';
  readonly unused: Tensor | undefined = undefined;
}

class Shared extends Module {
  readonly inner: Shared | undefined;
  weight: Tensor;
  constructor(weight: Tensor, inner?: Shared) {
    super();
    this.weight = weight;
    this.inner = inner;
  }
}

/** Two modules with one tensor, one of them at two places. */
class Diamond extends Module {
  readonly left: Shared;
  readonly right: Shared;
  readonly leftAgain: Shared;
  constructor() {
    super();
    const weight = own([1]);
    this.left = new Shared(weight);
    this.right = new Shared(weight);
    this.leftAgain = this.left;
  }
}

function own(values: number[]): Tensor {
  const handle = numbers(values, [values.length]);
  const made = parameter(handle);
  handle.dispose();
  return made;
}

/** That nothing is left of what `use` made. */
function leavesNothing(use: () => void): void {
  const before = memory(device).tensors;
  use();
  expect(memory(device).tensors).toBe(before);
}

describe('the tensors of a module', () => {
  it('have the names of its properties, each once', () => {
    using all = new Every();
    expect([...all.namedParameters().keys()]).toEqual([
      ...['scale', 'pieces.0', 'pieces.2'],
      ...['first.weight', 'first.bias', 'list.0.weight'],
    ]);
    expect(all.parameterCount).toBe(2 + 1 + 1 + 6 + 3 + 9);
    expect([...all.children()].map(([name]) => name)).toEqual(['first', 'list.0', 'list.1', 'again']);
  });

  it('are those of the layers of a Sequential, in their order', () => {
    using layers = new Sequential(new Linear(2, 4, options), new LayerNorm(4, options), new RMSNorm(4, options));
    expect(Object.keys(layers.stateDict())).toEqual([
      ...['layers.0.weight', 'layers.0.bias', 'layers.1.weight', 'layers.1.bias', 'layers.2.weight'],
    ]);
  });

  it('go with it, whatever else it keeps', () => {
    leavesNothing(() => new Every().dispose());
    leavesNothing(() => new Diamond().dispose());
    leavesNothing(() => {
      using all = new Every();
      all.dispose();
    });
  });
});

describe('freeze and unfreeze', () => {
  it('replace every tensor once, also a shared one, and leave nothing behind', () => {
    for (const make of [() => new Every(), () => new Diamond()])
      leavesNothing(() => {
        using all = make();
        const count = all.namedParameters().size;
        const held = memory(device).tensors;
        expect(all.parameters()).toHaveLength(count);
        for (let i = 0; i < 3; i++) {
          all.freeze();
          expect(all.parameters()).toHaveLength(0);
          all.unfreeze();
          expect(all.parameters()).toHaveLength(count);
          for (const t of all.namedParameters().values()) expect(t.disposed).toBe(false);
          expect(memory(device).tensors).toBe(held);
        }
        if (!(all instanceof Every)) return;
        expect(all.shift).toBe(all.scale);
        expect(all.pieces[1]).toBe(all.scale);
      });
  });

  it('keep the tensors within a scope, and free gradients', () => {
    leavesNothing(() => {
      using layer = new Linear(2, 2, options);
      const input = numbers([1, 2], [1, 2]);
      scope(() => layer.forward(input).backward(numbers([1, 1], [1, 2])));
      expect(layer.weight.grad).toBeDefined();
      scope(() => layer.freeze());
      expect(layer.weight.disposed).toBe(false);
      const frozen = layer.forward(input);
      expect(frozen.requiresGrad).toBe(false);
      scope(() => layer.unfreeze());
      const result = layer.forward(input);
      expect(result.requiresGrad).toBe(true);
      expect(layer.weight.grad).toBeUndefined();
      for (const t of [frozen, result, input]) t.dispose();
    });
  });

  it('leave a part of a model as it is while the rest is trained', async () => {
    using model = modelOf({ vocabulary: 5, context: 4, layers: 2, heads: 1, width: 4, ...options });
    const [first, second] = model.blocks;
    first?.freeze();
    const ids = tensor(Int32Array.of(1, 2, 3), [1, 3], { device });
    scope(() => model.loss(ids, ids).backward());
    for (const t of first?.namedParameters().values() ?? []) expect(t.grad).toBeUndefined();
    for (const t of second?.parameters() ?? []) expect(t.grad).toBeDefined();
    expect(model.tokens.weight.grad).toBeDefined();
    model.zeroGrad();
    for (const t of model.parameters()) expect(t.grad).toBeUndefined();
    ids.dispose();
  });

  it('leave tensors of integers alone', () => {
    class Counting extends Module {
      weight: Tensor = own([1]);
      count = numbers([1], [1], 'int32');
    }
    using counting = new Counting().freeze().unfreeze();
    expect(counting.parameters()).toEqual([counting.weight]);
  });
});

describe('train and eval', () => {
  it('reach every module', () => {
    using model = new Sequential(new Linear(2, 2, options), new Sequential(new Dropout(0.5, { seed: 1 })));
    const [, inner] = model.layers as [Linear, Sequential];
    expect(inner.layers[0]?.training).toBe(true);
    expect(model.eval()).toBe(model);
    expect(inner.layers[0]?.training).toBe(false);
    expect(model.train().layers[1]?.training).toBe(true);
  });

  it('decide whether dropout drops, other elements at each call', async () => {
    const drop = new Dropout(0.5, { seed: 7 });
    using x = numbers(new Array(64).fill(1), [64]);
    using a = drop.forward(x);
    const state = drop.seeds.state;
    using b = drop.forward(x);
    const [first, second] = [await a.data(), await b.data()];
    expect(new Set(first)).toEqual(new Set([0, 2]));
    expect(first).not.toEqual(second);
    drop.seeds.restore(state);
    using c = drop.forward(x);
    expect(await c.data()).toEqual(second);
    expect(drop.eval().forward(x)).toBe(x);
    await expectFailure(() => drop.seeds.restore('no number'), 'ERR_OPTION', 'state is "no number"');
    await expectFailure(() => drop.seeds.restore((2n ** 64n).toString()), 'ERR_OPTION', 'state is');
    await expectFailure(() => new Seeds(-1), 'ERR_OPTION', 'seed is -1');
  });
});

describe('a state dict', () => {
  const config = { vocabulary: 7, context: 5, layers: 2, heads: 2, width: 4, device } as const;

  it('makes another model the same, and leaves nothing behind', async () => {
    const before = memory(device).tensors;
    using a = modelOf(config, 1);
    using b = modelOf(config, 2);
    const held = memory(device).tensors;
    b.loadStateDict(a.stateDict());
    expect(await weightsOf(b)).toEqual(await weightsOf(a));
    const weights = await weightsOf(a);
    a.loadStateDict(a.stateDict());
    expect(await weightsOf(a)).toEqual(weights);
    expect(memory(device).tensors).toBe(held);
    a.dispose();
    b.dispose();
    expect(memory(device).tensors).toBe(before);
  });

  it('rounds to the dtype of the model, and takes views', async () => {
    using layer = new Linear(3, 2, { ...options, dtype: 'bfloat16' });
    using turned = numbers([1, 4, 2, 5, 3, 6], [3, 2]);
    using weight = turned.transpose(0, 1);
    using bias = numbers([1.001, -2], [2], 'float16');
    layer.loadStateDict({ weight, bias });
    expect([...(await layer.weight.toFloat32())]).toEqual([1, 2, 3, 4, 5, 6]);
    expect([...(await layer.bias!.toFloat32())]).toEqual([1, -2]);
  });

  it('is refused whole, with nothing loaded', async () => {
    using layer = new Linear(2, 2, options);
    using weight = numbers([1, 2, 3, 4], [2, 2]);
    using bias = numbers([1, 2], [2]);
    using wide = numbers([1, 2, 3], [3]);
    using counts = numbers([1, 2], [2], 'int32');
    const gone = numbers([1, 2], [2]);
    gone.dispose();
    using shared = layer.weight.detach();
    const before = await weightsOf(layer);
    const held = memory(device).tensors;
    const cases: [object, string, RegExp][] = [
      [{ weight }, 'ERR_OPTION', /no tensor "bias"/],
      [{ bias }, 'ERR_OPTION', /no tensor "weight"/],
      [{ weight, bias, other: bias }, 'ERR_OPTION', /"other", which the model has not/],
      [{ weight, bias: wide }, 'ERR_SHAPE', /bias has shape \[3\].*\[2\]/],
      [{ weight, bias: counts }, 'ERR_DTYPE', /bias is int32/],
      [{ weight, bias: gone }, 'ERR_DISPOSED', /bias has been disposed/],
      [{ weight, bias: 'text' }, 'ERR_OPTION', /no tensor "bias"/],
      [{ weight: shared, bias }, 'ERR_OPTION', /overlaps/],
    ];
    for (const [state, code, message] of cases)
      await expectFailure(() => layer.loadStateDict(state as never), code, message);
    expect(await weightsOf(layer)).toEqual(before);
    expect(memory(device).tensors).toBe(held);
  });

  it('comes back from a checkpoint, and from safetensors as they are', async () => {
    using a = modelOf({ ...config, tied: false }, 1);
    using b = modelOf({ ...config, tied: false }, 2);
    const path = at('model.safetensors');
    await saveCheckpoint(path, { model: a.stateDict(), step: 3 });
    expect((await loadCheckpoint(path, { model: b.stateDict() })).step).toBe(3);
    expect(await weightsOf(b)).toEqual(await weightsOf(a));
    await using file = await openSafetensors(path);
    expect([...file.tensors.keys()].map((name) => name.replace(/^model\./, '')).toSorted()).toEqual(
      [...a.namedParameters().keys()].toSorted(),
    );
    using other = modelOf({ ...config, layers: 1, tied: false });
    const before = await weightsOf(other);
    await expectFailure(loadCheckpoint(path, { model: other.stateDict() }), 'ERR_FILE', /blocks\.1.*is unexpected/);
    expect(await weightsOf(other)).toEqual(before);
  });
});

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('layers'), () => {
    it('leave nothing but their result, with gradients and without', () => {
      const made = { ...options, device };
      const layers = [
        ...[new Linear(4, 4, made), new Linear(4, 4, { ...made, bias: false, dtype: 'bfloat16' })],
        ...[new LayerNorm(4, made), new RMSNorm(4, made)],
        new Sequential(new Linear(4, 2, made), new Dropout(0.5), new Linear(2, 4, made)),
      ];
      const x = tensor(new Float32Array(8), [2, 4], { device });
      for (const layer of layers) {
        const held = memory(device).tensors;
        layer.forward(x).dispose();
        expect(memory(device).tensors).toBe(held);
        const result = noGrad(() => layer.forward(x));
        expect(memory(device).tensors).toBe(held + 1);
        result.dispose();
      }
      for (const layer of layers) layer.dispose();
      x.dispose();
    });
  });

describe('layers', () => {
  it('refuse what they cannot use', async () => {
    using layer = new Linear(3, 2, options);
    using norm = new LayerNorm(3, options);
    using table = new Embedding(4, 2, options);
    using x = numbers([1, 2], [1, 2]);
    using flat = numbers([1, 2, 3], [3]);
    await expectFailure(() => layer.forward(x), 'ERR_SHAPE', /\[1, 2\].*3 features/);
    await expectFailure(() => layer.forward(flat), 'ERR_SHAPE', /\[3\].*at least 2 axes/);
    await expectFailure(() => norm.forward(x), 'ERR_SHAPE', /3 features/);
    await expectFailure(() => table.forward(x as never), 'ERR_DTYPE', /int32/);
    await expectFailure(() => new Linear(0, 2, options), 'ERR_OPTION', /inputs is 0/);
    await expectFailure(() => new Embedding(2, 1.5, options), 'ERR_OPTION', /width is 1.5/);
    await expectFailure(() => new Sequential('layer' as never), 'ERR_OPTION', /layer 0 is "layer"/);
  });

  it('begin with what PyTorch begins with', async () => {
    using layer = new Linear(400, 300, options);
    const weight = await layer.weight.toFloat32();
    const bound = 1 / Math.sqrt(400);
    expect(Math.max(...weight.map(Math.abs))).toBeLessThanOrEqual(Math.fround(bound));
    const variance = weight.reduce((sum, x) => sum + x * x, 0) / weight.length;
    expect(variance / (bound ** 2 / 3)).toBeCloseTo(1, 1);
    using table = new Embedding(300, 200, options);
    const values = await table.weight.toFloat32();
    expect(values.reduce((sum, x) => sum + x * x, 0) / values.length).toBeCloseTo(1, 1);
    randomize(table, 1);
    expect(await table.weight.toFloat32()).not.toEqual(values);
  });
});
