import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { memory, type Shape, type Tensor, tensor, zeros } from '../../lib/index.js';
import { type Checkpoint, loadCheckpoint, saveCheckpoint } from '../../lib/nn/checkpoint.js';
import { openSafetensors, writeSafetensors } from '../../lib/nn/safetensors.js';
import { parseSafetensors } from '../../verify/golden/safetensors.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';
import { ramp } from './entries.js';

const at = temporaryFolder();

const before = memory().tensors;
const kept: Tensor[] = [];
const keep = <T extends Tensor>(made: T): T => {
  kept.push(made);
  return made;
};
afterAll(() => {
  for (const made of kept) made.dispose();
  expect(memory().tensors).toBe(before);
});

const made = (shape: Shape, dtype: 'float32' | 'float16' | 'bfloat16' = 'float32', from = 1) =>
  keep(
    tensor(
      ramp(
        shape.reduce((product, n) => product * n, 1),
        from,
      ),
      shape,
      { dtype },
    ),
  );

const state = (from: number) => ({
  model: {
    'wte.weight': made([5, 3], 'float32', from),
    'h.0.ln.weight': made([3], 'bfloat16', from),
    'h.0.half': made([2, 2], 'float16', from),
    empty: made([0, 3]),
    scalar: made([], 'float32', from),
  },
  optimizer: { 'wte.weight.m': made([5, 3], 'float32', -from), t: made([1], 'float32', from) },
});

type State = ReturnType<typeof state>;

async function valuesOf({ model, optimizer }: { model: object; optimizer?: object }): Promise<unknown[]> {
  const tensors = [...Object.entries(model), ...Object.entries(optimizer ?? {})] as [string, Tensor][];
  return Promise.all(tensors.map(async ([name, t]) => [name, [...(await t.toFloat32())]]));
}

describe('a checkpoint', () => {
  it('gives back each tensor and all else', async () => {
    const path = at('whole.safetensors');
    const [saved, loaded] = [state(1), state(100)];
    const random = { seed: 7, counter: [1, 2, 3] };
    const extra = { best: 2.5, name: 'ü"\u0000', nested: [null, true, { a: [] }], ['__proto__']: 1 };
    await saveCheckpoint(path, { ...saved, step: 12, random, extra });
    expect(await loadCheckpoint(path, loaded)).toEqual({ step: 12, random, extra: JSON.parse(JSON.stringify(extra)) });
    expect(await valuesOf(loaded)).toEqual(await valuesOf(saved));
  });

  it('is a safetensors file', async () => {
    const path = at('format.safetensors');
    const saved = state(1);
    const strided = keep(saved.model['wte.weight'].transpose(0, 1));
    await saveCheckpoint(path, { model: { ...saved.model, strided }, optimizer: saved.optimizer, step: 3 });
    const { metadata, tensors } = parseSafetensors(readFileSync(path));
    expect([...tensors.keys()].toSorted()).toEqual(
      [
        ...['wte.weight', 'h.0.ln.weight', 'h.0.half', 'empty', 'scalar', 'strided'].map((name) => `model.${name}`),
        ...['optimizer.wte.weight.m', 'optimizer.t'],
      ].toSorted(),
    );
    expect(tensors.get('model.strided')).toMatchObject({ dtype: 'F32', shape: [3, 5] });
    expect([...(tensors.get('model.strided')?.values ?? [])].slice(0, 5)).toEqual([1, 4, 7, 10, 13]);
    expect(tensors.get('model.h.0.ln.weight')).toMatchObject({
      dtype: 'BF16',
      values: Uint16Array.of(0x3f80, 0x4000, 0x4040),
    });
    expect(Object.fromEntries(metadata)).toMatchObject({
      'flashattn.checkpoint': '1',
      step: '3',
      random: 'null',
      extra: 'null',
    });
  });

  it('can be loaded without its optimizer, or be without one', async () => {
    const path = at('model.safetensors');
    const [saved, loaded] = [state(1), state(50)];
    await saveCheckpoint(path, { ...saved, step: 1 });
    await loadCheckpoint(path, { model: loaded.model });
    expect(await valuesOf({ model: loaded.model })).toEqual(await valuesOf({ model: saved.model }));
    await saveCheckpoint(path, { model: saved.model, step: 1 });
    await expectFailure(loadCheckpoint(path, loaded), 'ERR_FILE', /"optimizer\.wte\.weight\.m" is missing/);
  });

  const misfits: [string, (into: State) => object, string, RegExp][] = [
    [
      'another shape',
      ({ model }) => ({ ...model, 'h.0.half': made([4]) }),
      'ERR_SHAPE',
      /tensor "model\.h\.0\.half" has shape \[2, 2\]; it must be \[4\]/,
    ],
    [
      'another dtype',
      ({ model }) => ({ ...model, 'h.0.half': made([2, 2]) }),
      'ERR_DTYPE',
      /"model\.h\.0\.half" is F16; it must be F32/,
    ],
    ['a name too many', ({ model }) => ({ ...model, more: made([1]) }), 'ERR_FILE', /"model\.more" is missing/],
    ['a name too few', ({ model: { scalar, ...model } }) => model, 'ERR_FILE', /"model\.scalar" is unexpected/],
    [
      'a strided view',
      ({ model }) => ({ ...model, 'h.0.half': keep(model['h.0.half'].transpose(0, 1)) }),
      'ERR_SHAPE',
      /model\.h\.0\.half must be contiguous/,
    ],
  ];
  it.each(misfits)('that has %s is refused before anything is written', async (_, change, code, message) => {
    const path = at('misfit.safetensors');
    const loaded = state(50);
    await saveCheckpoint(path, { ...state(1), step: 1 });
    const unchanged = await valuesOf(loaded);
    const into = { ...loaded, model: change(loaded) as Checkpoint['model'] };
    await expectFailure(loadCheckpoint(path, into), code, message);
    expect(await valuesOf(loaded)).toEqual(unchanged);
  });

  it('that is damaged is refused before anything is written', async () => {
    const path = at('damaged.safetensors');
    const loaded = state(50);
    await saveCheckpoint(path, { ...state(1), step: 1 });
    const unchanged = await valuesOf(loaded);
    const bytes = readFileSync(path);
    bytes[bytes.length - 1] ^= 1;
    writeFileSync(path, bytes);
    await expectFailure(
      loadCheckpoint(path, loaded),
      'ERR_FILE',
      /the bytes of tensor "model\.h\.0\.ln\.weight" have changed/,
    );
    expect(await valuesOf(loaded)).toEqual(unchanged);
  });

  it('is told from other files, and from later versions', async () => {
    const path = at('other.safetensors');
    const write = (metadata: Record<string, string>) => writeSafetensors(path, [], { metadata });
    const load = () => loadCheckpoint(path, { model: {} });
    await write({});
    await expectFailure(load, 'ERR_FILE', /no checkpoint/);
    const rest = { step: '1', random: 'null', extra: 'null' };
    await write({ ...rest, 'flashattn.checkpoint': '2' });
    await expectFailure(load, 'ERR_FILE', /version "2"/);
    await write({ ...rest, 'flashattn.checkpoint': '1', step: '-1' });
    await expectFailure(load, 'ERR_FILE', /step of its metadata is -1/);
    await write({ ...rest, 'flashattn.checkpoint': '1', extra: '{' });
    await expectFailure(load, 'ERR_FILE', /extra of its metadata is "\{", which is not JSON/);
    await write({ 'flashattn.checkpoint': '1', step: '1' });
    await expectFailure(load, 'ERR_FILE', /random of its metadata is undefined/);
  });

  it('refuses what it could not give back, and leaves the old one', async () => {
    const path = at('refused.safetensors');
    const { model } = state(1);
    await saveCheckpoint(path, { model, step: 1 });
    const old = readFileSync(path);
    const circle: unknown[] = [];
    circle.push(circle);
    const gone = zeros([1]);
    gone.dispose();
    const wrong: [object, string, RegExp][] = [
      [{ step: -1 }, 'ERR_OPTION', /step is -1/],
      [{ step: undefined }, 'ERR_OPTION', /step is undefined/],
      [{ random: Number.NaN }, 'ERR_OPTION', /random is NaN/],
      [{ extra: { a: [1n] } }, 'ERR_OPTION', /extra\.a\[0\] is 1n/],
      [{ extra: { at: new Map() } }, 'ERR_OPTION', /extra\.at is Map/],
      [{ extra: { a: undefined } }, 'ERR_OPTION', /extra\.a is undefined/],
      [{ extra: circle }, 'ERR_OPTION', /deeper than 100 levels/],
      [{ model: null }, 'ERR_OPTION', /model is null/],
      [{ model: { a: 1 } }, 'ERR_OPTION', /model\.a is 1/],
      [{ model: { a: gone } }, 'ERR_DISPOSED', /model\.a has been disposed/],
      [{ optimiser: {} }, 'ERR_OPTION', /did you mean "optimizer"/],
    ];
    for (const [change, code, message] of wrong)
      await expectFailure(saveCheckpoint(path, { model, step: 1, ...change } as Checkpoint), code, message);
    expect(readFileSync(path).equals(old)).toBe(true);
  });

  it('has raw tensors for those who want them', async () => {
    const path = at('raw.safetensors');
    const saved = state(1);
    await saveCheckpoint(path, { ...saved, step: 1 });
    await using file = await openSafetensors(path);
    expect(await file.read('model.wte.weight', 'F32')).toEqual(await saved.model['wte.weight'].data());
  });
});
