/** The CUDA addon and what the library makes of it: memory, transfers, streams, pointers, errors, environments. */
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import { readProblem } from '../../../lib/attention/problem.js';
import type { AddonError } from '../../../lib/backends/cuda/addon.js';
import { DeviceErrors } from '../../../lib/backends/cuda/errors.js';
import { StructMemory } from '../../../lib/backends/shared/structWriter.js';
import { emulatorControls } from '../../../lib/devices/registry.js';
import {
  attention,
  emptyCache,
  explain,
  FlashAttnError,
  fromDevicePointer,
  gatherRows,
  measurePeak,
  measureTime,
  memory,
  mergeStates,
  mergeStatesBackward,
  plan,
  RowMap,
  setStream,
  status,
  synchronize,
  type Tensor,
  tensor,
  zeros,
} from '../../../lib/index.js';
import { attentionForward } from '../../../lib/kernels/attention.js';
import { fill } from '../../../lib/kernels/copy.js';
import { parseDescription } from '../../../lib/kernels/struct.js';
import { distUrl } from '../../support/child.js';
import { codeOf } from '../../support/codeOf.js';
import { hasEmulator, loadEmulatedAddon, onEmulator } from '../../support/emulator.js';

const device = 'emulator' as 'cuda'; // not among the public names
// Read when the addon is loaded, by the first test that needs it.
const deviceBytes = 2 ** 26;
process.env.FLASHATTN_EMULATOR_MEMORY = String(deviceBytes);

const range = (n: number) => Float32Array.from({ length: n }, (_, i) => i);
describe.skipIf(!hasEmulator)(onEmulator('device memory'), () => {
  it('is counted, and given back by dispose', () => {
    const before = memory(device);
    const a = tensor(range(10), [10], { device });
    const b = zeros([3], { device, dtype: 'float16' });
    const view = a.slice(0, 0, 5);
    expect(memory(device)).toMatchObject({
      device: 'emulator',
      // 16-bit tensors are padded to whole words.
      bytesInUse: before.bytesInUse + 40 + 8,
      tensors: before.tensors + 2,
    });
    a.dispose();
    a.dispose();
    b.dispose();
    expect(memory(device).tensors).toBe(before.tensors + 1);
    view.dispose();
    expect(memory(device)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
    expect(memory(device).bytesPeak).toBeGreaterThanOrEqual(before.bytesInUse + 48);
    expect(memory(device).bytesLimit).toBe(deviceBytes);
  });

  it('that runs out is a typed error, and the device goes on working', () => {
    const before = memory(device);
    const data = new Float32Array((deviceBytes / 4) * 0.75);
    using most = tensor(data, [data.length], { device });
    let thrown: unknown;
    try {
      tensor(data, [data.length], { device });
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(FlashAttnError);
    expect(thrown).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
    const free = deviceBytes - memory(device).bytesInUse;
    expect((thrown as Error).message).toBe(
      `emulator: ${data.byteLength} bytes were asked for and ${free} of its ${deviceBytes} bytes are free; dispose tensors or split the problem`,
    );
    expect(memory(device).tensors).toBe(before.tensors + 1);
    most.dispose();
    using t = tensor(data, [data.length], { device });
    using start = t.slice(0, 0, 3);
    start.write([1, 2, 3]);
    expect([...start.dataSync()]).toEqual([1, 2, 3]);
  });

  it('that runs out while the device rounds leaves nothing behind', () => {
    emptyCache(device);
    const before = memory(device);
    const count = (deviceBytes - before.bytesInUse) / 2 - 2 ** 19;
    const data = new Float32Array(count);
    expect(codeOf(() => tensor(data, [count], { device, dtype: 'float16' }))).toBe('ERR_OUT_OF_MEMORY');
    expect(memory(device)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
  });

  it('is kept for what comes, as much as was needed lately', async () => {
    const large = () => zeros([2 ** 22], { device });
    const reserved = () => memory(device).bytesReserved;
    emptyCache(device);
    const before = reserved();
    large().dispose();
    await synchronize(device);
    expect(reserved()).toBe(before + 2 ** 24);
    large().dispose(); // finds what is there
    expect(reserved()).toBe(before + 2 ** 24);
    for (let i = 0; i < 2 * 64; i++) await synchronize(device);
    expect(reserved()).toBe(before);
    // Needed again and again, it stays.
    for (let i = 0; i < 3 * 64; i++) {
      if (i % 20 === 0) large().dispose();
      await synchronize(device);
    }
    expect(reserved()).toBe(before + 2 ** 24);
    emptyCache(device);
    expect(reserved()).toBe(before);
    expect(memory('wasm').bytesInUse).toBeGreaterThanOrEqual(0);
    emptyCache('wasm');
  });

  it('that another environment keeps unused is there when it is asked for', () => {
    const { Context } = loadEmulatedAddon();
    const other = new Context(0);
    emptyCache(device);
    const bytes = 0.75 * deviceBytes;
    other.free(other.allocate(bytes));
    expect(other.memoryInfo().reserved).toBe(bytes);
    using t = zeros([bytes / 4], { device });
    expect(t.size).toBe(bytes / 4);
    expect(other.memoryInfo().reserved).toBe(0);
  });

  it('of zeros is zero also where it was used before', async () => {
    for (const dtype of ['float32', 'float16', 'bfloat16'] as const)
      for (const count of [0, 1, 3, 1001]) {
        tensor(range(count).fill(7), [count], { device, dtype }).dispose();
        using t = zeros([count], { device, dtype });
        const data = await t.data();
        expect(data.length).toBe(count);
        expect(data.every((x) => x === 0)).toBe(true);
      }
  });
});

describe.skipIf(!hasEmulator)(onEmulator('data'), () => {
  const views: [string, (t: Tensor) => Tensor][] = [
    ['whole', (t) => t],
    ['reshaped', (t) => t.reshape([12, 10])],
    ['transposed', (t) => t.transpose(0, 2)],
    ['sliced', (t) => t.slice(1, 1, 3)],
    ['selected', (t) => t.select(2, 3)],
    ['sliced and transposed', (t) => t.slice(2, 1, 4).transpose(1, 2)],
    ['empty', (t) => t.slice(0, 1, 1)],
  ];

  it.each(views)('of a tensor that is %s reads as on wasm, whatever the dtype', async (_, viewOf) => {
    for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
      const read = async (on: 'wasm' | 'cuda') => {
        using t = tensor(range(120), [4, 6, 5], { device: on, dtype });
        using view = viewOf(t);
        expect(view.dataSync()).toEqual(await view.data());
        expect(view.toFloat32Sync()).toEqual(await view.toFloat32());
        return view.data();
      };
      expect(await read(device)).toEqual(await read('wasm'));
    }
  });

  it('is copied in and out', async () => {
    const source = range(3);
    using t = tensor(source, [3], { device });
    source[0] = 9;
    const read = await t.data();
    read[1] = 9;
    expect([...(await t.data())]).toEqual([0, 1, 2]);
    t.write([5, 6, 7]);
    expect([...t.dataSync()]).toEqual([5, 6, 7]);
    using part = t.slice(0, 1, 3);
    part.write([8, 9]);
    expect([...t.dataSync()]).toEqual([5, 8, 9]);
  });

  it('is that of the call, whatever is written or disposed afterwards', async () => {
    const t = tensor([1, 2], [2], { device });
    const first = t.data();
    t.write([3, 4]);
    const second = t.data();
    t.dispose();
    expect([...(await first), ...(await second)]).toEqual([1, 2, 3, 4]);
  });

  it('larger than the staging memory goes through whole', async () => {
    const values = range(5_000_001);
    using t = tensor(values, [values.length], { device });
    const same = (data: Float32Array) => Buffer.compare(Buffer.from(data.buffer), Buffer.from(values.buffer)) === 0;
    expect(same(t.dataSync())).toBe(true);
    expect(same(await t.data())).toBe(true);
    // Pieces that wrap around in the ring.
    for (let i = 0; i < 5; i++) {
      const [begin, end] = [i * 1_000_000, (i + 1) * 1_000_000];
      using part = t.slice(0, begin, end);
      part.write(new Float32Array(end - begin).fill(i));
      values.fill(i, begin, end);
    }
    expect(same(t.dataSync())).toBe(true);
  });

  it('of many small tensors at a time', async () => {
    const tensors = Array.from({ length: 300 }, (_, i) => tensor([i], [1], { device }));
    const data = await Promise.all(tensors.map((t) => t.data()));
    expect(data.map(([x]) => x)).toEqual([...range(300)]);
    for (const t of tensors) t.dispose();
  });
});

describe.skipIf(!hasEmulator)(onEmulator('operations'), () => {
  it('gather rows as on wasm', async () => {
    const map = RowMap.fromLists([[2, 0], [], [1], [0, 1, 2]], 3);
    const run = async (on: 'wasm' | 'cuda') => {
      using source = tensor(
        range(48).map((x) => Math.sin(x)),
        [2, 3, 8],
        { device: on },
      );
      using result = gatherRows(source, map, { scale: 0.5 });
      return result.data();
    };
    expect(await run(device)).toEqual(await run('wasm'));
    using empty = zeros([0, 3, 8], { device });
    expect(gatherRows(empty, map).shape).toEqual([0, 4, 8]);
  });

  it('merge states as on wasm, forward and backward', async () => {
    const run = async (on: 'wasm' | 'cuda') => {
      const made = (seed: number, shape: number[]) =>
        tensor(
          range(shape.reduce((a, b) => a * b)).map((x) => Math.sin(seed + x)),
          shape,
          { device: on },
        );
      const states = [1, 2, 3].map((seed) => ({
        out: made(seed, [2, 5, 3, 4]),
        lse: made(seed + 9, [2, 3, 5]) as Tensor<'float32'>,
      }));
      const merged = mergeStates(states as never);
      const gradients = mergeStatesBackward(
        made(50, [2, 5, 3, 4]) as never,
        { states, ...merged } as never,
        { dLse: made(60, [2, 3, 5]) } as never,
      );
      const results = [merged.out, merged.lse, ...gradients.flatMap(({ dOut, dLse }) => [dOut, dLse])] as Tensor[];
      return Promise.all(results.map((t) => t.toFloat32()));
    };
    const [got, expected] = [await run(device), await run('wasm')];
    for (const [i, values] of got.entries())
      for (const [at, x] of values.entries()) expect(x).toBeCloseTo(expected[i][at], 5);
  });

  it('of a plan allocate nothing when they run', async () => {
    const shape = [1, 5, 2, 8];
    const inputs = [1, 2, 3].map((seed) =>
      tensor(
        range(80).map((x) => Math.sin(seed * x)),
        shape,
        { device },
      ),
    );
    const [q, k, v] = inputs as [Tensor<'float32'>, Tensor<'float32'>, Tensor<'float32'>];
    using sink = tensor([0.5, -0.5], [2], { device, dtype: 'bfloat16' });
    const options = { causal: true, sink, qLens: [4], deterministic: true };
    using planned = plan({ q: shape, device, backward: true, ...options });
    const first = await planned.run(q, k, v).out.data();
    const gradient = await planned.runBackward(v).dq.data();
    const before = memory(device);
    for (let run = 0; run < 3; run++) {
      expect(planned.run(q, k, v).out.dataSync()).toEqual(first);
      expect(planned.runBackward(v).dq.dataSync()).toEqual(gradient);
    }
    expect(memory(device)).toEqual(before);
    // The last query is none: its row is zero.
    expect([...first.subarray(64)]).toEqual(new Array(16).fill(0));
    for (const t of inputs) t.dispose();
  });

  it.each([
    ['float16', 64, 64, 16],
    ['float16', 36, 64, 8],
    ['bfloat16', 64, 30, 4],
    ['bfloat16', 31, 31, 2],
    ['float32', 31, 31, 4],
    ['float32', 6, 6, 8],
  ] as const)('tell that rows of %s of dims %i and %i are copied by %i bytes', (dtype, dim, valueDim, copyBytes) => {
    const shapes = { q: [1, 8, 2, dim], k: [1, 8, 2, dim], v: [1, 8, 2, valueDim] };
    expect(explain({ ...shapes, dtype, device }).block).toMatchObject({ copyBytes });
  });

  it('are explained and timed', async () => {
    const cost = explain({ q: [2, 300, 4, 64], dtype: 'float16', device, backward: true });
    expect(cost).toMatchObject({ device: 'emulator', kernel: 'cuda-sm80' });
    expect(cost.items).toBeGreaterThan(0);
    expect(cost.block?.threads).toBeGreaterThan(0);
    expect(cost.workspaceBytes).toBeGreaterThan(0);
    expect(await measurePeak(device)).toBeGreaterThan(0);
    expect(await measureTime(() => zeros([1000], { device }).dispose(), device)).toBeGreaterThan(0);
    expect(await measureTime(() => undefined, 'wasm')).toBeGreaterThanOrEqual(0);
    await synchronize(device);
  });
});

describe.skipIf(!hasEmulator)(onEmulator('two devices'), () => {
  it('do not mix', () => {
    using here = zeros([1, 2, 1, 4], { device });
    using there = zeros([1, 2, 1, 4], { device: 'wasm' });
    using bias = zeros([1, 1, 2, 2], { device });
    const state = (out: Tensor, on: 'wasm' | 'cuda') => ({ out, lse: zeros([1, 1, 2], { device: on }) });
    const states = [state(here, device), state(there, 'wasm')];
    const before = [memory(device).bytesInUse, memory('wasm').bytesInUse];
    for (const [name, run] of [
      ['k', () => attention(here, there, there)],
      ['v', () => attention(there, there, here)],
      ['bias', () => attention(there, there, there, { bias })],
      ['states[1].out', () => mergeStates(states as never)],
    ] as const) {
      expect(codeOf(run)).toBe('ERR_DEVICE');
      expect(run).toThrow(
        new RegExp(`^${name.replace(/[[\].]/g, '\\$&')} is on (wasm|emulator); all tensors of this call must be on`),
      );
    }
    expect([memory(device).bytesInUse, memory('wasm').bytesInUse]).toEqual(before);
    for (const { lse } of states) lse.dispose();
  });

  it('say what they are', () => {
    expect(status(device)).toMatchObject({
      requested: 'emulator',
      device: 'emulator',
      name: 'Emulated device',
      computeCapability: expect.stringMatching(/^\d+\.\d+$/),
      memoryBytes: deviceBytes,
      driver: expect.stringMatching(/^\d+\.\d+$/),
      reasons: [],
    });
    expect(status('wasm')).toMatchObject({ device: 'wasm', simd: 'relaxed', reasons: [] });
  });
});

describe.skipIf(!hasEmulator)(onEmulator('device pointers'), () => {
  it('name the first element and make tensors over foreign memory', async () => {
    using owner = tensor(range(12), [3, 4], { device });
    using row = owner.select(0, 1);
    expect(row.devicePointer).toBe(owner.devicePointer + 16n);
    const before = memory(device);
    using alias = fromDevicePointer(row.devicePointer, [2, 4], { device });
    using strided = fromDevicePointer(owner.devicePointer + 4n, [3, 2], { device, strides: [4, 1] });
    using halves = fromDevicePointer(owner.devicePointer + 2n, [3], { device, dtype: 'bfloat16' });
    expect(memory(device).bytesInUse).toBe(before.bytesInUse);
    expect([...(await alias.data())]).toEqual([4, 5, 6, 7, 8, 9, 10, 11]);
    expect([...strided.dataSync()]).toEqual([1, 2, 5, 6, 9, 10]);
    expect([...(await halves.data())]).toEqual([0, 0, 0x3f80]);
    alias.write(range(8));
    expect([...owner.dataSync()]).toEqual([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7]);
  });

  it('release the memory once, when the last view is gone', async () => {
    using owner = tensor(range(4), [4], { device });
    let released = 0;
    let tell = () => {};
    const done = new Promise<void>((resolve) => (tell = resolve));
    const release = () => {
      released++;
      tell();
    };
    const foreign = fromDevicePointer(owner.devicePointer, [4], { device, release });
    const view = foreign.slice(0, 1, 2);
    foreign.dispose();
    await synchronize(device);
    expect(released).toBe(0);
    view.dispose();
    view.dispose();
    // Not before the device is done with the memory.
    expect(released).toBe(0);
    await done;
    await synchronize(device);
    expect(released).toBe(1);
    expect([...owner.dataSync()]).toEqual([0, 1, 2, 3]);
  });

  it('are refused when they cannot be', () => {
    using owner = zeros([4], { device });
    const { devicePointer: pointer } = owner;
    const make = (at: bigint, shape: number[], options: object = {}) =>
      codeOf(() => fromDevicePointer(at, shape, { device, ...options }));
    expect(make(pointer + 2n, [1])).toBe('ERR_OPTION');
    expect(make(pointer + 1n, [1], { dtype: 'float16' })).toBe('ERR_OPTION');
    expect(make(0n, [1])).toBe('ERR_OPTION');
    expect(make(-8n, [1])).toBe('ERR_OPTION');
    expect(make(Number(pointer) as never, [1])).toBe('ERR_OPTION');
    expect(make(pointer, [1], { strides: [-1] })).toBe('ERR_OPTION');
    expect(make(pointer, [1], { strides: [1, 1] })).toBe('ERR_SHAPE');
    expect(make(pointer, [1], { release: 1 })).toBe('ERR_OPTION');
    expect(make(pointer, [1], { device: 'wasm' })).toBe('ERR_DEVICE');
    expect(make(4096n, [1])).toBe('ERR_DEVICE');
    expect(make(pointer, [5])).toBe('ERR_DEVICE');
    expect(make(pointer, [2], { strides: [4] })).toBe('ERR_DEVICE');
    expect(() => fromDevicePointer(pointer, [5], { device })).toThrow('pointer + 19, the last byte of the tensor, is');
    using there = zeros([1], { device: 'wasm' });
    expect(codeOf(() => there.devicePointer)).toBe('ERR_DEVICE');
    owner.dispose();
    expect(codeOf(() => owner.devicePointer)).toBe('ERR_DISPOSED');
  });

  it('and streams: everything goes on in order', async () => {
    using t = tensor(range(4), [4], { device });
    setStream(device, 0n);
    t.write([5, 6, 7, 8]);
    expect([...(await t.data())]).toEqual([5, 6, 7, 8]);
    using made = zeros([2], { device });
    setStream(device, undefined);
    expect([...made.dataSync()]).toEqual([0, 0]);
    expect(codeOf(() => setStream(device, 12n))).toBe('ERR_DEVICE');
    expect(codeOf(() => setStream(device, 1 as never))).toBe('ERR_OPTION');
    expect(codeOf(() => setStream('wasm', 0n))).toBe('ERR_DEVICE');
    expect([...t.dataSync()]).toEqual([5, 6, 7, 8]);
  });

  it('while a stream is captured into a graph, is refused; tensors can be disposed of', async () => {
    const emulator = emulatorControls();
    if (!emulator) throw new Error('no emulator');
    const stream = emulator.createStream();
    using t = tensor(range(4), [4], { device });
    using other = tensor(range(4), [4], { device });
    const used = memory(device).bytesInUse;
    setStream(device, BigInt(stream));
    using scratch = tensor(range(4), [4], { device });
    emulator.setCapturing(stream, true);
    const refused = 'being captured into a graph';
    expect(() => t.write([5, 6, 7, 8])).toThrow(refused);
    expect(() => t.dataSync()).toThrow(refused);
    expect(() => zeros([1], { device })).toThrow(refused);
    expect(() => other.copyInto(t)).toThrow(refused);
    expect(() => setStream(device, undefined)).toThrow(refused);
    await expect(synchronize(device)).rejects.toThrow(refused);
    scratch.dispose();
    emulator.setCapturing(stream, false);
    expect([...t.dataSync()]).toEqual([0, 1, 2, 3]);
    setStream(device, undefined);
    expect(memory(device).bytesInUse).toBe(used);
    emulator.setCapturing(stream, true);
    expect(() => setStream(device, BigInt(stream))).toThrow(refused);
    expect([...t.dataSync()]).toEqual([0, 1, 2, 3]);
  });
});

describe.skipIf(!hasEmulator)(onEmulator('the addon'), () => {
  afterEach(() => emulatorControls()?.clearReports());

  it('throws a TypeError where arguments are not what it needs', () => {
    const { Context } = loadEmulatedAddon();
    const context = new Context(0);
    const call = (run: (c: Record<string, (...args: unknown[]) => unknown>) => unknown) => () => run(context as never);
    expect(call((c) => c.allocate(-1))).toThrow(TypeError);
    expect(call((c) => c.allocate('1'))).toThrow(TypeError);
    expect(call((c) => c.allocate(2 ** 60))).toThrow(TypeError);
    expect(call((c) => c.read(0, new Float32Array(1)))).toThrow(TypeError);
    const needed = `argument 1 must be a Uint8Array of ${attentionForward.struct.byteLength} bytes`;
    expect(call((c) => c.launch(0, new Uint8Array(8)))).toThrow(needed);
    expect(call((c) => c.launch(99, new Uint8Array(8)))).toThrow('argument 0 must be the number of an operation');
    expect(call((c) => c.launch())).toThrow(TypeError);
    expect(call((c) => c.partition(new Uint8Array(8), new Uint8Array(8)))).toThrow(TypeError);
    expect(call((c) => c.free(4096))).toThrow('cudaErrorInvalidValue');
    expect(call((c) => c.elapsed(7, 8))).toThrow('cudaErrorInvalidResourceHandle');
    expect(() => new Context(3)).toThrow('cudaErrorInvalidDevice');
    expect(() => (Context as unknown as () => void)()).toThrow();
  });

  it('reports what the emulator saw a launch do', () => {
    const { Context, emulator } = loadEmulatedAddon();
    const context = new Context(0);
    const pointer = context.allocate(64);
    const { operations } = parseDescription(loadEmulatedAddon().description);
    const params = new ArrayBuffer(fill.struct.byteLength);
    const launchFill = (byteLength: number) => {
      const launch = fill.describe({ buffer: { address: pointer, byteLength, revision: 0 }, bits: 0 });
      new StructMemory(params).write(fill.struct, launch?.params);
      context.launch(operations.indexOf('fill'), new Uint8Array(params));
    };
    expect(() => launchFill(128)).toThrow(/copy\.cu:\d+.*fill/);
    expect(emulator?.reports().length).toBeGreaterThan(0);
    emulator?.clearReports();
    expect(emulator?.reports()).toEqual([]);
    expect(emulator?.statistics().launches).toBeGreaterThan(0);
    launchFill(64);
    const bytes = new Uint8Array(64);
    context.readSync(pointer, bytes);
    expect(bytes.every((x) => x === 0)).toBe(true);
    context.free(pointer);
  });
});

describe('errors of the device', () => {
  const thrown = (properties: Partial<AddonError>) => Object.assign(new Error('cudaErrorX: words'), properties);
  const problem = readProblem([2, 128, 8, 64], [2, 96, 2, 64], [2, 96, 2, 32], 'float16', {});

  const messageOf = (errors: DeviceErrors, properties: Partial<AddonError>) =>
    (errors.of(thrown({ code: 'ERR_DEVICE', ...properties }), problem) as Error).message;
  const shapes = 'q float16 [2, 128, 8, 64], k [2, 96, 2, 64], v [2, 96, 2, 32]';

  it('name the launch and the shapes', () => {
    const errors = new DeviceErrors('cuda:1');
    expect(errors.of(thrown({ code: 'ERR_DEVICE', launch: 'forward' }))).toMatchObject({ code: 'ERR_DEVICE' });
    expect(messageOf(errors, { launch: 'forward', cuda: 'cudaErrorInvalidValue' })).toBe(
      `cuda:1: the launch of forward failed for ${shapes}: cudaErrorX: words`,
    );
  });

  it('do not blame a launch for an earlier one, unless it was waited for', () => {
    expect(messageOf(new DeviceErrors('cuda:0'), { launch: 'forward', cuda: 'cudaErrorIllegalAddress' })).toBe(
      `cuda:0: forward for ${shapes}, or a kernel launched before it, failed (FLASHATTN_SYNC=1 tells which): ` +
        'cudaErrorX: words; the device cannot be used any more by this process',
    );
    const waited = { launch: 'attentionForward', ended: true, cuda: 'cudaErrorIllegalAddress' };
    expect(messageOf(new DeviceErrors('cuda:0'), waited)).toMatch(`cuda:0: attentionForward failed for ${shapes}: `);
  });

  it('say with every later call what took the device away', () => {
    const errors = new DeviceErrors('cuda:0');
    messageOf(errors, { launch: 'forward', ended: true, cuda: 'cudaErrorMisalignedAddress' });
    expect(messageOf(errors, {})).toBe(
      'cuda:0: the device cannot be used any more by this process, since ' +
        `forward failed for ${shapes}: cudaErrorX: words; now: cudaErrorX: words`,
    );
  });

  it('tell memory that ran out on either side', () => {
    const errors = new DeviceErrors('cuda:0');
    const sizes = { code: 'ERR_OUT_OF_MEMORY', requested: 5, free: 3, total: 4 } as const;
    expect((errors.of(thrown(sizes)) as Error).message).toContain('5 bytes were asked for and 3 of its 4');
    const pinned = errors.of(thrown({ code: 'ERR_DEVICE', cuda: 'cudaErrorMemoryAllocation' }));
    expect(pinned).toMatchObject({ code: 'ERR_OUT_OF_MEMORY' });
  });

  it('leave other errors alone', () => {
    const other = new TypeError('argument 0');
    expect(new DeviceErrors('cuda:0').of(other)).toBe(other);
  });
});

describe.skipIf(!hasEmulator)(onEmulator('worker threads'), () => {
  /** Runs `body` with the built package as `fa` in a worker; resolves with its message. */
  const start = (body: string) => {
    const script = `import { parentPort } from 'node:worker_threads'; import * as fa from ${JSON.stringify(distUrl)};\n${body}`;
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(script)}`));
    const message = new Promise<unknown>((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
      worker.once('exit', (code) => reject(new Error(`exit ${code}`)));
    });
    return { worker, message };
  };
  const device = `{ device: 'emulator' }`;

  it('have devices of their own, several at a time', async () => {
    const body = (i: number) => `
      const t = fa.tensor([${i}, ${i + 1}], [1, 2, 1], ${device});
      const sums = [];
      for (let round = 0; round < 20; round++) {
        const g = fa.gatherRows(t, fa.RowMap.fromLists([[0, 1], [1]], 2));
        sums.push([...await g.data()].join());
        g.dispose();
      }
      parentPort.postMessage({ sums: [...new Set(sums)], tensors: fa.memory('emulator').tensors });`;
    const results = await Promise.all([1, 2, 3].map((i) => start(body(i)).message));
    expect(results).toEqual([1, 2, 3].map((i) => ({ sums: [`${2 * i + 1},${i + 1}`], tensors: 1 })));
  });

  it('can be terminated with memory in use and reads under way', async () => {
    const body = `
      const kept = Array.from({ length: 4 }, () => fa.tensor(new Float32Array(1 << 20), [1 << 20], ${device}));
      for (const t of kept) for (let i = 0; i < 4; i++) void t.data();
      parentPort.postMessage('reading');
      for (const t of kept) for (let i = 0; i < 4; i++) void t.data();
      await new Promise(() => setInterval(() => {}, 1000));`;
    using mine = tensor(range(4), [4], { device: 'emulator' as 'cuda' });
    for (let round = 0; round < 4; round++) {
      const { worker, message } = start(body);
      expect(await message).toBe('reading');
      expect(await worker.terminate()).toBe(1);
    }
    expect([...(await mine.data())]).toEqual([0, 1, 2, 3]);
    // The memory of all of them was freed: nearly the whole device fits again.
    const most = new Float32Array((deviceBytes - 2 ** 20) / 4);
    tensor(most, [most.length], { device: 'emulator' as 'cuda' }).dispose();
  });
});
