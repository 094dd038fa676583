import { afterAll, describe, expect, it, vi } from 'vitest';
import {
  attention,
  attentionBackward,
  type DenseOptions,
  FlashAttnError,
  memory,
  mergeStates,
  mergeStatesBackward,
  plan,
  type Shape4,
  status,
  t5RelativeBias,
  tensor,
  zeros,
} from '../../lib/index.js';
import { processor } from '../support/cpu.js';

const before = memory().tensors;
const [batch, length, heads, dim] = [2, 6, 4, 8];
const shape: Shape4 = [batch, length, heads, dim];
const q = zeros(shape);
const k = zeros(shape);
const v = zeros(shape);
const anyOptions = (options: Record<string, unknown>) => options as DenseOptions;

/** Runs `f`, which must throw a FlashAttnError with this code and a message that says all of `parts`. */
function rejects(f: () => unknown, code: string, ...parts: string[]): void {
  const alive = memory().bytesInUse;
  let caught: unknown;
  try {
    f();
  } catch (error) {
    caught = error;
  }
  expect(caught).toBeInstanceOf(FlashAttnError);
  const { code: got, message } = caught as FlashAttnError;
  expect({ code: got, message }).toMatchObject({ code });
  for (const part of parts) expect(message).toContain(part);
  expect(memory().bytesInUse, 'an error leaves no memory behind').toBe(alive);
}

afterAll(() => {
  for (const t of [q, k, v]) t.dispose();
  expect(memory().tensors).toBe(before);
});

describe('shapes', () => {
  it.each([
    ['rank', [2, 6, 8], [2, 6, 4, 8], [2, 6, 4, 8], 'q has shape [2, 6, 8]'],
    ['batch', [1, 6, 4, 8], [2, 6, 4, 8], [2, 6, 4, 8], 'batch sizes differ: 1, 2 and 2'],
    ['head dim', [2, 6, 4, 8], [2, 6, 4, 7], [2, 6, 4, 8], 'same head dim, got 8 and 7'],
    ['key length', [2, 6, 4, 8], [2, 5, 4, 8], [2, 6, 4, 8], 'same length, got 5 and 6'],
    ['kv heads', [2, 6, 4, 8], [2, 6, 2, 8], [2, 6, 4, 8], 'same number of heads, got 2 and 4'],
    ['grouping', [2, 6, 4, 8], [2, 6, 3, 8], [2, 6, 3, 8], '4 query heads must be a positive multiple of the 3'],
    ['dim 0', [2, 6, 4, 0], [2, 6, 4, 0], [2, 6, 4, 8], 'it must be from 1 to 256'],
    ['dim 257', [1, 1, 1, 257], [1, 1, 1, 257], [1, 1, 1, 8], 'it must be from 1 to 256'],
    ['value dim 257', [1, 1, 1, 8], [1, 1, 1, 8], [1, 1, 1, 257], 'head dim of v is 257'],
  ])('%s', (_, qShape, kShape, vShape, message) => {
    const tensors = [qShape, kShape, vShape].map((s) => zeros(s as number[]));
    const [a, b, c] = tensors as [typeof q, typeof q, typeof q];
    rejects(() => attention(a, b, c), 'ERR_SHAPE', message);
    for (const t of tensors) t.dispose();
  });

  it('rejects a last dim that is not contiguous', () => {
    using base = zeros([batch, length, dim, heads]);
    using transposed = base.transpose(2, 3);
    rejects(() => attention(transposed as typeof q, k, v), 'ERR_SHAPE', 'q must be contiguous along its last dim');
  });

  it('checks everything that backward is given', () => {
    const { out, lse } = attention(q, k, v);
    using wrong = zeros([batch, length, heads, 3]);
    using wrongLse = zeros([batch, length, heads]);
    const saved = { q, k, v, out, lse, options: {} };
    rejects(() => attentionBackward(wrong, saved), 'ERR_SHAPE', 'dOut has shape [2, 6, 4, 3]');
    rejects(() => attentionBackward(out, { ...saved, out: wrong }), 'ERR_SHAPE', 'saved.out');
    rejects(() => attentionBackward(out, { ...saved, lse: wrongLse }), 'ERR_SHAPE', 'saved.lse');
    rejects(() => attentionBackward(out, saved, { dLse: wrongLse }), 'ERR_SHAPE', 'dLse');
    out.dispose();
    lse.dispose();
  });
});

describe('dtypes', () => {
  it('rejects mixed and unknown ones', () => {
    using half = zeros(shape, { dtype: 'float16' });
    rejects(() => attention(q, half as never, v), 'ERR_DTYPE', 'k is float16 and q is float32');
    rejects(
      () => zeros(shape, { dtype: 'int8' as never }),
      'ERR_DTYPE',
      '"int8"',
      "'float32', 'float16', 'bfloat16', 'int32' or 'bool'",
    );
    rejects(
      () => tensor(new Uint16Array(1), [1], { dtype: 'float32' as never }),
      'ERR_DTYPE',
      'Uint16Array of bit patterns',
    );
    rejects(() => tensor(new Int8Array(1) as never, [1]), 'ERR_DTYPE', 'Int8Array');
    using slopes = zeros([heads], { dtype: 'float16' });
    rejects(() => attention(q, k, v, { alibi: slopes as never }), 'ERR_DTYPE', 'alibi is float16');
  });
});

describe('options', () => {
  const bad: [name: string, options: Record<string, unknown>, ...message: string[]][] = [
    ['unknown name', { casual: true }, 'there is no option "casual"'],
    ['scale NaN', { scale: Number.NaN }, 'scale is NaN', 'finite'],
    ['scale Infinity', { scale: Number.POSITIVE_INFINITY }, 'scale is Infinity'],
    ['scale string', { scale: '1' }, 'scale is "1"'],
    ['softcap -1', { softcap: -1 }, 'softcap is -1', 'positive'],
    ['softcap NaN', { softcap: Number.NaN }, 'softcap is NaN'],
    ['causal', { causal: 1 }, 'causal is 1'],
    ['align', { align: 'center' }, 'align is "center"'],
    ['layout', { layout: 'sbhd' }, 'layout is "sbhd"'],
    ['window', { window: [1] }, 'window is [1]'],
    ['window below -1', { window: [-2, 0] }, 'window[0] is -2'],
    ['deterministic', { deterministic: 'yes' }, 'deterministic is "yes"'],
    ['dropout p', { dropout: { p: 1, seed: 1 } }, 'dropout.p is 1'],
    ['dropout seed', { dropout: { p: 0.5, seed: -1 } }, 'dropout.seed is -1'],
    ['dropout seed too big', { dropout: { p: 0.5, seed: 2n ** 64n } }, 'dropout.seed'],
    ['qLens count', { qLens: [1] }, 'qLens has 1 entries', '2 batch entries'],
    ['kLens range', { kLens: [1, 7] }, 'kLens[1] is 7', 'from 0 to the sequence length 6'],
    ['kLens fraction', { kLens: [1, 1.5] }, 'kLens is [1, 1.5]'],
    ['lengths without their partner', { cuSeqlensQ: [0, 1] }, 'cuSeqlensQ and cuSeqlensK must be given together'],
    ['sink type', { sink: [1, 2, 3, 4] }, 'sink is [1, 2, 3, 4]'],
    ['alibi count', { alibi: [1, 2, 3] }, 'alibi has 3 slopes', '4 query heads'],
  ];
  it.each(bad)('%s', (_, options, ...message) => {
    const code = options.alibi ? 'ERR_SHAPE' : 'ERR_OPTION';
    rejects(() => attention(q, k, v, anyOptions(options)), code, ...message);
    rejects(() => plan({ q: shape, ...options }), code, ...message);
  });

  it.each([
    ['not from 0', [1, 6], [0, 6], 'must start with 0'],
    ['falling', [0, 4, 3], [0, 4, 6], 'must never fall, but cuSeqlensQ[2] = 3 comes after 4'],
    ['past the end', [0, 13], [0, 6], 'ends at 13, past the 12 rows'],
    ['counts', [0, 6, 12], [0, 6], 'cuSeqlensQ has 3 entries and cuSeqlensK 2'],
  ])('cu_seqlens %s', (_, cuSeqlensQ, cuSeqlensK, message) => {
    using packed = zeros([12, heads, dim]);
    rejects(() => attention(packed, packed, packed, { cuSeqlensQ, cuSeqlensK }), 'ERR_OPTION', message);
  });

  it('has no meaning: dense options with cu_seqlens', () => {
    using packed = zeros([12, heads, dim]);
    const options = anyOptions({ cuSeqlensQ: [0, 12], cuSeqlensK: [0, 12], layout: 'bhsd' });
    rejects(
      () => attention(packed as never, packed as never, packed as never, options),
      'ERR_OPTION',
      'layout has no meaning',
    );
  });

  it.each([
    [[batch, heads, length]],
    [[batch, heads, length, 5]],
    [[3, heads, length, length]],
    [[batch, 2, length, length]],
  ])('bias of shape %j does not broadcast', (biasShape) => {
    using bias = zeros(biasShape);
    rejects(
      () => attention(q, k, v, { bias }),
      'ERR_SHAPE',
      'it must broadcast to [batch, heads, Nq, Nk] = [2, 4, 6, 6]',
    );
  });

  it('sink and relative tables need one entry per head', () => {
    using three = zeros([3]);
    using table = zeros([8, 3]);
    using small = zeros([8, heads]);
    rejects(() => attention(q, k, v, { sink: three }), 'ERR_SHAPE', 'sink has shape [3]', '[4]');
    const relativeBias = t5RelativeBias(table, { queryLength: length, keyLength: length });
    rejects(() => attention(q, k, v, { relativeBias }), 'ERR_SHAPE', 'relativeBias.table has shape [8, 3]');
    const short = t5RelativeBias(small, { queryLength: 3, keyLength: length });
    rejects(() => attention(q, k, v, { relativeBias: short }), 'ERR_OPTION', 'relativeBias.buckets has 8 entries');
    const outside = { table: small, buckets: new Int32Array(11).fill(8), origin: 5 };
    rejects(() => attention(q, k, v, { relativeBias: outside }), 'ERR_OPTION', 'relativeBias.buckets[0] is 8');
  });

  it('mergeStates needs states that agree', () => {
    const state = attention(q, k, v);
    using other = zeros([batch, length, heads, dim], { dtype: 'float16' });
    rejects(() => mergeStates([]), 'ERR_OPTION', 'states is []');
    rejects(() => mergeStates([state, { ...state, out: other as never }]), 'ERR_DTYPE', 'states[1].out is float16');
    rejects(() => mergeStates([state, { ...state, lse: state.out as never }]), 'ERR_SHAPE', 'states[1].lse');
    state.out.dispose();
    state.lse.dispose();
  });
});

describe('tensors', () => {
  it('checks shape and number of elements', () => {
    rejects(() => tensor([1, 2, 3], [2, 2]), 'ERR_SHAPE', 'data has 3 elements', '[2, 2] needs 4');
    rejects(() => tensor([1], [-1]), 'ERR_SHAPE', 'shape is [-1]');
    rejects(() => tensor([1], [1.5]), 'ERR_SHAPE', 'shape is [1.5]');
    rejects(() => tensor(['1'] as never, [1]), 'ERR_DTYPE', 'data is ["1"]');
  });

  it('cannot be used after dispose', () => {
    const gone = zeros(shape);
    gone.dispose();
    gone.dispose();
    rejects(() => attention(gone, k, v), 'ERR_DISPOSED', 'q has been disposed');
    rejects(() => gone.dataSync(), 'ERR_DISPOSED', 'disposed');
    rejects(() => gone.reshape([1]), 'ERR_DISPOSED', 'disposed');
  });

  it('names what is not a tensor', () => {
    rejects(
      () => attention(new Float32Array(4) as never, k, v),
      'ERR_OPTION',
      'q is Float32Array; it must be a tensor',
    );
    rejects(() => attention(q, undefined as never, v), 'ERR_OPTION', 'k is undefined');
  });
});

describe('devices', () => {
  it('"cuda" says why it cannot be used, "auto" never throws', () => {
    rejects(() => zeros([1], { device: 'cuda' }), 'ERR_DEVICE', 'NO_ADDON');
    rejects(() => status('cuda:1'), 'ERR_DEVICE', 'NO_ADDON');
    rejects(() => status('gpu' as never), 'ERR_DEVICE', 'device is "gpu"');
    expect(status('auto')).toMatchObject({ device: processor, requested: 'auto' });
    expect(status('auto').reasons[0]).toMatchObject({ device: 'cuda', code: 'NO_ADDON' });
    expect(status('wasm')).toMatchObject({ device: 'wasm', reasons: [] });
  });
});

describe('memory', () => {
  it('names the bytes asked for and available, and the process goes on', async () => {
    const sixGiB = [6, 2 ** 14, 2 ** 8, 64] as const;
    rejects(() => zeros(sixGiB, { device: 'wasm' }), 'ERR_OUT_OF_MEMORY', `${6 * 2 ** 30} bytes`, 'available');
    rejects(() => plan({ q: sixGiB, device: 'wasm' }), 'ERR_OUT_OF_MEMORY', 'bytes');
    const { out, lse } = attention(q, k, v);
    expect((await out.data()).every((x) => x === 0)).toBe(true);
    out.dispose();
    lse.dispose();
  });

  it('frees the outputs when only some of them fit', () => {
    // q, k and v fit, out fits, the gradients together do not.
    const description = { q: [1, 2 ** 16, 64, 64], backward: true, device: 'wasm' } as const; // 1 GiB for each tensor
    rejects(() => plan(description), 'ERR_OUT_OF_MEMORY', 'bytes');
  });
});

describe('what float32 cannot hold', () => {
  it.each([
    ['scale', { scale: 1e39 }, 'scale is 1e+39'],
    ['scale * log2 e', { scale: 3e38 }, 'scale is 3e+38'],
    ['tiny scale', { scale: 1e-39 }, 'scale is 1e-39'],
    ['softcap * log2 e', { softcap: 3e38 }, 'softcap is 3e+38'],
    ['tiny softcap', { softcap: 1e-46 }, 'softcap is 1e-46'],
    ['softcap Infinity', { softcap: Number.POSITIVE_INFINITY }, 'softcap is Infinity'],
    ['scale / softcap too large', { scale: 1e10, softcap: 1e-30 }, 'scale / softcap must be'],
    ['scale / softcap too small', { scale: 1e-20, softcap: 1e30 }, 'scale / softcap must be'],
    ['alibi NaN', { alibi: [0, Number.NaN, 0, 0] }, 'alibi[1] is NaN'],
    ['alibi Infinity', { alibi: [0, 0, 0, Number.NEGATIVE_INFINITY] }, 'alibi[3] is -Infinity'],
    ['alibi * log2 e', { alibi: Float32Array.from([3e38, 0, 0, 0]) }, 'alibi[0] is'],
  ])('%s', (_, options, message) => {
    rejects(() => attention(q, k, v, anyOptions(options)), 'ERR_OPTION', message);
  });

  it.each([
    ['scale', { scale: 2e38 }],
    ['scale 0', { scale: 0 }],
    ['small scale', { scale: 1.2e-38 }],
    ['softcap', { softcap: 2e38, scale: 2e38 }],
    ['small softcap', { softcap: 1.2e-38, scale: 1.2e-38 }],
    ['slopes', { alibi: [1e37, -1e37, 1e-45, 0] }],
  ])('takes what it can: %s', (_, options) => {
    const { out, lse } = attention(q, k, v, anyOptions(options));
    expect(out.dataSync().every((x) => x === 0)).toBe(true);
    out.dispose();
    lse.dispose();
  });
});

describe('values of the wrong kind', () => {
  it.each([
    ['null options', null, 'options is null'],
    ['a list of options', [], 'options is []'],
    ['dropout null', { dropout: null }, 'dropout is null'],
    ['dropout with more', { dropout: { p: 0.1, seed: 1, Seed: 2 } }, 'there is no option "Seed" in dropout'],
    ['relativeBias null', { relativeBias: null }, 'relativeBias is null'],
    ['relativeBias with more', { relativeBias: { table: null, bucket: 1 } }, 'in relativeBias'],
    ['bias null', { bias: null }, 'bias is null'],
    ['bias of numbers', { bias: [1] }, 'bias is [1]; it must be a tensor'],
    ['sink null', { sink: null }, 'sink is null'],
    ['alibi null', { alibi: null }, 'alibi is null'],
    ['mask null', { mask: null }, 'mask is null'],
    ['window null', { window: null }, 'window is null'],
    ['offset fraction', { offset: 1.5 }, 'offset is 1.5'],
    ['offset too large', { offset: 2 ** 30 }, 'offset is 1073741824'],
    ['offset and align', { offset: 1, align: 'topLeft' }, 'offset and align are both given'],
    ['attnMask null', { attnMask: null }, 'attnMask is null'],
    ['attnMask of numbers', { attnMask: { data: new Float32Array(6), shape: [6] } }, 'attnMask.data is Float32Array'],
    ['attnMask with a hole', { attnMask: { data: new Array(6), shape: [6] } }, 'attnMask.data[0] is undefined'],
    ['a misspelt option', { casual: true }, 'did you mean "causal"?'],
  ])('%s', (_, options, message) => {
    rejects(() => attention(q, k, v, options as never), 'ERR_OPTION', message);
  });

  it.each([
    [
      'shape',
      { data: new Uint8Array(5), shape: [5] },
      'attnMask has shape [5]; it must broadcast to [batch, heads, Nq, Nk] = [2, 4, 6, 6]',
    ],
    ['rank', { data: new Uint8Array(6), shape: [1, 1, 1, 1, 6] }, 'rank 1 to 4'],
    ['count', { data: new Uint8Array(5), shape: [6] }, 'attnMask.data has 5 elements; attnMask.shape [6] needs 6'],
    ['no shape', { data: new Uint8Array(6) }, 'attnMask.shape is undefined'],
  ])('attnMask: %s', (_, attnMask, message) => {
    rejects(() => attention(q, k, v, anyOptions({ attnMask })), 'ERR_SHAPE', message);
  });

  it('tensors of another copy of the package', async () => {
    vi.resetModules();
    const foreign = (await import('../../lib/index.js')).zeros([6]);
    for (const name of ['bias', 'attnMask', 'sink'])
      rejects(
        () => attention(q, k, v, anyOptions({ [name]: foreign })),
        'ERR_OPTION',
        `${name} is a tensor of another copy of this package`,
      );
  });

  it('of mergeStates', () => {
    const { out, lse } = attention(q, k, v);
    rejects(() => mergeStates([null as never]), 'ERR_OPTION', 'states[0] is null');
    rejects(() => mergeStates(new Array(1)), 'ERR_OPTION', 'states[0] is undefined');
    rejects(() => mergeStates([{ out, lse }], null as never), 'ERR_OPTION', 'options is null');
    rejects(() => mergeStates([{ out, lse }], { Layout: 'bhsd' } as never), 'ERR_OPTION', 'did you mean "layout"?');
    rejects(() => mergeStatesBackward(out, null as never), 'ERR_OPTION', 'saved is null');
    out.dispose();
    lse.dispose();
  });

  it('of plan and backward', () => {
    rejects(() => plan({ q: shape, backward: 'yes' as never }), 'ERR_OPTION', 'backward is "yes"');
    rejects(() => plan(null as never), 'ERR_OPTION', 'problem');
    rejects(() => attentionBackward(q, null as never), 'ERR_OPTION', 'saved is null');
  });
});

describe('attention of a plan to its own tensors', () => {
  it('is refused, by tensor and by view', () => {
    using planned = plan({ q: shape, backward: true });
    const { out, lse } = planned.run(q, k, v);
    const gradients = planned.runBackward(q);
    rejects(() => planned.run(out, k, v), 'ERR_OPTION', 'q overlaps out of the plan');
    rejects(() => planned.run(q, k, out), 'ERR_OPTION', 'v overlaps out of the plan');
    using flat = out.reshape([out.size]);
    using view = flat.reshape(shape);
    rejects(() => planned.run(q, view, v), 'ERR_OPTION', 'k overlaps out of the plan');
    rejects(() => planned.runBackward(gradients.dq), 'ERR_OPTION', 'dOut overlaps dq of the plan');
    // Reading what an earlier call wrote is fine, as long as this one does not write it.
    planned.run(gradients.dq, k, v);
    rejects(() => planned.runBackward(q), 'ERR_OPTION', 'q overlaps dq of the plan');
    planned.run(q, k, v);
    planned.runBackward(out, lse);
  });
});
