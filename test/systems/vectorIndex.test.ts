/** Inverted lists, against exact search and against distances in float64. */
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { type DeviceName, memory, noGrad, type Tensor, tensor } from 'flashattn';
import { openSafetensors, writeSafetensors } from 'flashattn/nn';
import { knn, VectorIndex } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { normal } from '../../verify/oracle/random.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { failureOf } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();
const dim = 16;

const rows = (values: Float64Array, device: DeviceName): Tensor =>
  tensor(Float32Array.from(values), [values.length / dim, dim], { device }) as Tensor;

/** Vectors around so many centres, all at hand in float64. */
function mixture(count: number, centres: number, seed: number): Float64Array {
  const [around, noise] = [normal(centres * dim, seed), normal(count * dim, seed + 1)];
  return noise.map((x, i) => 4 * (around[((Math.floor(i / dim) * 7) % centres) * dim + (i % dim)] as number) + x);
}

const score = (q: Float64Array, i: number, k: Float64Array, j: number, metric: 'dot' | 'euclidean'): number => {
  let total = 0;
  for (let c = 0; c < dim; c++) {
    const [x, y] = [q[i * dim + c] as number, k[j * dim + c] as number];
    total += metric === 'dot' ? x * y : -((x - y) ** 2);
  }
  return total;
};

interface Found {
  readonly values: Float32Array;
  readonly indices: Int32Array;
}

function search(index: VectorIndex, queries: Tensor, options: Parameters<VectorIndex['search']>[1]): Found {
  const { values, indices } = index.search(queries, options);
  const found = { values: values.toFloat32Sync(), indices: indices.dataSync() };
  values.dispose();
  indices.dispose();
  return found;
}

describe.each(testDevices)('$device', ({ device, present, title, isSlow }) => {
  describe.skipIf(!present)(title('an index of vectors'), () => {
    it.each(['dot', 'euclidean'] as const)('finds what exact search does when all lists are read, by %s', (metric) => {
      const before = memory(device).tensors;
      const [q, k] = [mixture(20, 9, 1), mixture(300, 9, 3)];
      using queries = rows(q, device);
      using keys = rows(k, device);
      using index = VectorIndex.build(keys, { lists: 7, metric });
      expect([index.size, index.dim, index.lists]).toEqual([300, dim, 7]);
      const { values, indices } = search(index, queries, { count: 5, probes: 7 });
      const exact = noGrad(() => knn(queries, keys, { count: 5, metric }));
      expect(indices).toEqual(exact.indices.dataSync());
      for (const [i, value] of values.entries()) {
        const expected = score(q, Math.floor(i / 5), k, indices[i] as number, metric);
        expect(Math.abs(value - expected)).toBeLessThan(1e-5 * 16 * dim * 16);
      }
      exact.values.dispose();
      exact.indices.dispose();
      index.dispose();
      queries.dispose();
      keys.dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it('finds nearly all neighbours in few lists where vectors lie in clusters', () => {
      const [q, k] = [mixture(50, 20, 5), mixture(isSlow ? 400 : 2000, 20, 5)];
      using queries = rows(q, device);
      using keys = rows(k, device);
      using index = VectorIndex.build(keys, { lists: 20, metric: 'euclidean' });
      const { indices } = search(index, queries, { count: 5, probes: 4 });
      const exact = noGrad(() => knn(queries, keys, { count: 5, metric: 'euclidean' }));
      const wanted = exact.indices.dataSync();
      let met = 0;
      for (let i = 0; i < 50; i++) {
        const found = new Set(indices.subarray(5 * i, 5 * i + 5));
        met += wanted.subarray(5 * i, 5 * i + 5).filter((x) => found.has(x)).length;
      }
      expect(met / wanted.length).toBeGreaterThan(0.95);
      exact.values.dispose();
      exact.indices.dispose();
    });

    it('says where the lists that are read have too few vectors', () => {
      using keys = rows(normal(6 * dim, 7), device);
      using index = VectorIndex.build(keys, { lists: 6, iterations: 0, metric: 'euclidean' });
      // Each vector is a list of its own, and its own nearest one.
      const { values, indices } = search(index, keys, { count: 3, probes: 1 });
      expect([...indices]).toEqual([0, 1, 2, 3, 4, 5].flatMap((i) => [i, -1, -1]));
      for (const [i, value] of values.entries())
        if (i % 3 === 0) expect(Math.abs(value)).toBeLessThan(1e-4);
        else expect(value).toBe(Number.NEGATIVE_INFINITY);
    });

    it('keeps lists that nothing is near to', () => {
      using same = rows(new Float64Array(40 * dim).fill(0.5), device);
      using index = VectorIndex.build(same, { lists: 4, metric: 'euclidean' });
      using query = same.slice(0, 0, 1);
      const { indices } = search(index, query as Tensor, { count: 40, probes: 4 });
      expect([...indices].sort((a, b) => a - b)).toEqual(Array.from({ length: 40 }, (_, i) => i));
    });

    it.each(['dot', 'euclidean'] as const)('finds each of vectors that are the same once, by %s', (metric) => {
      // Two vectors, over and over: most means are nearest to nothing.
      const two = normal(2 * dim, 5).map(Math.fround);
      using vectors = rows(
        Float64Array.from({ length: 24 * dim }, (_, i) => two[i % (2 * dim)] as number),
        device,
      );
      using index = VectorIndex.build(vectors, { lists: 6, metric });
      using queries = rows(two, device);
      for (const probes of [1, 6]) {
        const { values, indices } = search(index, queries, { count: 12, probes });
        for (const query of [0, 1]) {
          const own = [...indices.subarray(query * 12, (query + 1) * 12)].sort((a, b) => a - b);
          // All of its own kind, however they are spread over lists.
          if (metric === 'euclidean' && probes === 6)
            expect(own).toEqual(Array.from({ length: 12 }, (_, i) => 2 * i + query));
          const known = own.filter((i) => i >= 0);
          expect(new Set(known).size).toBe(known.length);
          for (const [n, i] of [...indices.subarray(query * 12, (query + 1) * 12)].entries())
            if (i < 0) expect(values[query * 12 + n]).toBe(-Infinity);
        }
      }
    });

    it('finds what is added, with indices that go on', () => {
      const [first, second] = [mixture(120, 5, 11), mixture(30, 5, 13)];
      using a = rows(first, device);
      using b = rows(second, device);
      using both = rows(Float64Array.from([...first, ...second]), device);
      using index = VectorIndex.build(a, { lists: 5 });
      index.add(b);
      expect(index.size).toBe(150);
      const { indices } = search(index, both, { count: 4, probes: 5 });
      const exact = noGrad(() => knn(both, both, { count: 4 }));
      expect(indices).toEqual(exact.indices.dataSync());
      exact.values.dispose();
      exact.indices.dispose();
    });

    it('is the same after a file', async () => {
      using keys = rows(mixture(90, 4, 17), device);
      using index = VectorIndex.build(keys, { lists: 4, metric: 'euclidean' });
      const path = at(`index-${device}.safetensors`);
      await index.save(path);
      using again = await VectorIndex.load(path, { device });
      expect([again.size, again.dim, again.lists, again.metric]).toEqual([90, dim, 4, 'euclidean']);
      const options = { count: 3, probes: 2 };
      expect(search(again, keys, options)).toEqual(search(index, keys, options));
    });

    it('searches for nothing', () => {
      using keys = rows(normal(6 * dim, 7), device);
      using index = VectorIndex.build(keys, { lists: 2 });
      using none = keys.slice(0, 0, 0);
      expect(search(index, none as Tensor, { count: 3 })).toEqual({
        values: new Float32Array(0),
        indices: new Int32Array(0),
      });
    });
  });
});

describe('a file of an index', () => {
  const device: DeviceName = 'wasm';
  const saved = async (name: string): Promise<string> => {
    using keys = rows(mixture(40, 4, 19), device);
    using index = VectorIndex.build(keys, { lists: 4 });
    const path = at(name);
    await index.save(path);
    return path;
  };
  /** The file again, with one tensor changed. */
  async function changed(name: string, tensorName: string, change: (values: Float32Array | Int32Array) => void) {
    const path = await saved(name);
    await using file = await openSafetensors(path);
    const entries = [];
    for (const [own, { dtype, shape }] of file.tensors) {
      const data = (await file.read(own)) as Float32Array | Int32Array;
      if (own === tensorName) change(data);
      entries.push({ name: own, dtype, shape, data });
    }
    const { 'flashattn.vectorIndex': version, metric } = file.metadata as Record<string, string>;
    await writeSafetensors(path, entries, {
      metadata: { 'flashattn.vectorIndex': version as string, metric: metric as string },
    });
    return path;
  }
  const failure = async (path: string) => failureOf(() => VectorIndex.load(path, { device }));

  it('that is cut off is refused', async () => {
    const path = await saved('cut.safetensors');
    const { length } = await readFile(path);
    await truncate(path, length - 8);
    expect(await failure(path)).toMatchObject({ code: 'ERR_FILE' });
  });

  it('whose bytes have changed is refused', async () => {
    const path = await saved('flipped.safetensors');
    const bytes = await readFile(path);
    const last = bytes.length - 5;
    bytes[last] = (bytes[last] as number) ^ 1;
    await writeFile(path, bytes);
    expect(await failure(path)).toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining('have changed') });
  });

  it('of something else is refused', async () => {
    const path = at('other.safetensors');
    await writeSafetensors(path, [{ name: 'x', dtype: 'F32', shape: [1], data: new Float32Array(1) }]);
    expect(await failure(path)).toMatchObject({
      code: 'ERR_FILE',
      message: expect.stringContaining('no index of vectors'),
    });
  });

  it.each([
    ['falling offsets', 'offsets', (x: Float32Array | Int32Array) => x.set([0, 30, 20], 0), 'offsets must rise'],
    ['offsets beyond the end', 'offsets', (x: Float32Array | Int32Array) => x.fill(400, 4), 'offsets must rise'],
    ['an id twice', 'ids', (x: Float32Array | Int32Array) => x.fill(3, 0, 2), 'once'],
    ['an id that is no number', 'ids', (x: Float32Array | Int32Array) => x.fill(Number.NaN, 5, 6), 'ids[5] is NaN'],
  ])('with %s is refused', async (name, tensorName, change, said) => {
    const path = await changed(`${name}.safetensors`, tensorName, change);
    expect(await failure(path)).toMatchObject({ code: 'ERR_FILE', message: expect.stringContaining(said) });
  });
});

describe('an index refuses', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) =>
    tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)), shape, { device }) as Tensor;

  it.each([
    ['vectors of another rank', () => VectorIndex.build(of(2, 3, 4), { lists: 1 }), 'ERR_SHAPE', /vectors has shape/],
    ['more lists than vectors', () => VectorIndex.build(of(3, 4), { lists: 4 }), 'ERR_OPTION', /lists is 4/],
    ['no lists', () => VectorIndex.build(of(3, 4), { lists: 0 }), 'ERR_OPTION', /lists is 0/],
    [
      'another metric',
      () => VectorIndex.build(of(3, 4), { lists: 1, metric: 'cosine' as 'dot' }),
      'ERR_OPTION',
      /metric/,
    ],
    [
      'queries of another dim',
      () => VectorIndex.build(of(3, 4), { lists: 1 }).search(of(2, 5), { count: 1 }),
      'ERR_SHAPE',
      /queries has shape \[2, 5\]/,
    ],
    [
      'too many probes',
      () => VectorIndex.build(of(3, 4), { lists: 2 }).search(of(2, 4), { count: 1, probes: 3 }),
      'ERR_OPTION',
      /probes is 3/,
    ],
    [
      'no count',
      () => VectorIndex.build(of(3, 4), { lists: 2 }).search(of(2, 4), { count: 0 }),
      'ERR_OPTION',
      /count is 0/,
    ],
    [
      'added vectors of another dim',
      () => VectorIndex.build(of(3, 4), { lists: 2 }).add(of(2, 5)),
      'ERR_SHAPE',
      /vectors has shape \[2, 5\]/,
    ],
  ] as const)('%s', (_, f, code, message) => {
    expect(errorOf(f)).toMatch(new RegExp(`^${code}: .*${message.source}`));
  });
});
