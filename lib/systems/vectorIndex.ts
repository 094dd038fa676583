// Nearest neighbours among many vectors: inverted lists, of which a search reads a few.
import { checkInteger, checkOptions, checkWord } from '../base/check.js';
import { shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { checkPath, type FilePath, fileError } from '../nn/file.js';
import { openSafetensors, type SafetensorsFile, writeSafetensors } from '../nn/safetensors.js';
import { takeAlongAxis } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { add, fused, square, sub } from '../ops/elementwise.js';
import { embedding, type Indices, scatterAdd } from '../ops/embedding.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { sort, topK } from '../ops/sort.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { withoutRecording } from '../tape/tape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { type Wide, wide } from './inputs.js';
import { knn, type Neighbours } from './knn.js';
import { countUp } from './selectedBlocks.js';

export interface VectorIndexOptions {
  /** How many lists the vectors are sorted into; about the square root of their number. */
  readonly lists: number;
  /** 'dot' (default): the largest q . k; 'euclidean': the smallest |q - k|. */
  readonly metric?: 'dot' | 'euclidean';
  /** Rounds of k-means. Default 10. */
  readonly iterations?: number;
  /** Of how many vectors for each list the means are made, at most. Default 256. */
  readonly sample?: number;
}

export interface SearchOptions {
  /** How many neighbours of each query. */
  readonly count: number;
  /** How many lists are read for each query, from 1 to all of them. Default 8, or all. */
  readonly probes?: number;
}

interface LoadOptions {
  readonly device?: DeviceName;
}

/** Places and names of lists pass through float32. */
const mostVectors = 2 ** 24;
/** Scores of queries with a list that are held at once, about. */
const scoresAtOnce = 2 ** 22;
const format = '1';

const meanOr = fused((total, count, old) => count.less(1).where(old, total.div(count)));
/** Of place `order` among all probes of all queries: the query. */
const queryOf = fused((order, probes) => order.add(0.5).div(probes).floor());

function checkVectors(t: unknown, argument: string): asserts t is Tensor {
  checkTensor(t, argument);
  const [count = 0, dim = 0] = t.shape;
  if (t.shape.length !== 2 || dim < 1)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be [${argument}, dim]`);
  if (count > mostVectors)
    throw shapeError(`${argument} has shape ${show(t.shape)}; there must be at most 2^24 of them`);
}

const nearestMean = (vectors: Tensor, means: Tensor): Indices => {
  const [count] = vectors.shape;
  if (count === 0) return filled(vectors.backend, [0], 'int32', 0) as Indices;
  return knn(wide(vectors), means, { count: 1, metric: 'euclidean' }).indices.reshape([count]) as Indices;
};

/** How many times each of `lists` numbers is there. */
const countsOf = (of: Indices, lists: number): Wide =>
  scatterAdd(lists, of, filled(of.backend, [of.shape[0], 1], 'float32', 1) as Tensor) as Wide;

/** Means of the vectors nearest to each, over and over; one that is nearest to none stays. Lloyd's k-means. */
function kMeans(sample: Wide, lists: number, iterations: number): Wide {
  const [count] = sample.shape;
  let means = sample.slice(0, 0, Math.floor(count / lists) * lists, Math.floor(count / lists)).contiguous() as Wide;
  for (let i = 0; i < iterations; i++) {
    const before = means;
    means = scope(() => {
      const nearest = nearestMean(sample, before);
      return meanOr(scatterAdd(lists, nearest, sample as Tensor), countsOf(nearest, lists), before) as Wide;
    });
    before.dispose();
  }
  return means;
}

interface Lists {
  /** [lists, dim] */
  readonly means: Wide;
  /** [vectors, dim], those of a list behind one another. */
  readonly vectors: Wide;
  /** float32 [vectors, 1]: which vector each is, counted as they were added. */
  readonly ids: Wide;
  /** Where each list begins, and where the last ends. */
  readonly offsets: Int32Array;
}

/** Sorts vectors by their lists [vectors]; of one list they stay in order. */
function sorted(means: Wide, vectors: Wide, ids: Wide, lists: Indices): Lists {
  const counts = countsOf(lists, means.shape[0]).toFloat32Sync();
  const offsets = new Int32Array(counts.length + 1);
  for (let list = 0; list < counts.length; list++) offsets[list + 1] = offsets[list] + counts[list];
  const { indices } = sort(cast(lists, 'float32') as Tensor);
  return { means, vectors: embedding(vectors as Tensor, indices) as Wide, ids: embedding(ids as Tensor, indices) as Wide, offsets }; // biome-ignore format: one line
}

const tensorsOf = ({ means, vectors, ids }: Lists) => ({ means, vectors, ids });

/**
 * An index of inverted lists (IVF; Sivic and Zisserman 2003, Jégou et al. 2011): vectors are sorted into lists by the nearest of a
 * few means, and a search compares a query with the vectors of the lists whose means are nearest to it. What `knn` finds
 * exactly is found in a fraction of the time, and missed where it lies in a list that is not read: `probes` trades one for
 * the other. With all lists it finds what `knn` does.
 *
 * Vectors are kept in float32, on their device.
 */
export class VectorIndex implements Disposable {
  #lists: Lists;

  private constructor(
    lists: Lists,
    readonly metric: 'dot' | 'euclidean',
  ) {
    this.#lists = lists;
  }

  /**
   * @param vectors [vectors, dim], at least as many as there are lists and at most 2^24; index i finds row i
   * @throws ERR_SHAPE, ERR_OPTION, ERR_DTYPE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  static build(vectors: Tensor, options: VectorIndexOptions): VectorIndex {
    checkVectors(vectors, 'vectors');
    checkOptions(options, ['lists', 'metric', 'iterations', 'sample']);
    const { lists, metric = 'dot', iterations = 10, sample = 256 } = options;
    const [count] = vectors.shape;
    checkInteger(lists, 'lists', 1, count);
    checkWord(metric, 'metric', ['dot', 'euclidean']);
    checkInteger(iterations, 'iterations', 0);
    checkInteger(sample, 'sample', 1);
    return new VectorIndex(
      withoutRecording(() => {
        let found: Lists | undefined;
        scope(() => {
          const all = wide(vectors);
          const step = Math.max(1, Math.floor(count / (lists * sample)));
          const means = kMeans(all.slice(0, 0, count, step).contiguous() as Wide, lists, iterations);
          const ids = countUp(count, vectors).reshape([count, 1]) as Wide;
          found = sorted(means, all, ids, nearestMean(all, means));
          return tensorsOf(found);
        });
        return found as Lists;
      }),
      metric,
    );
  }

  /** How many vectors there are. */
  get size(): number {
    return this.#lists.vectors.shape[0];
  }

  get dim(): number {
    return this.#lists.means.shape[1];
  }

  get lists(): number {
    return this.#lists.means.shape[0];
  }

  /**
   * The nearest vectors of each query among those of the lists that are read, as `knn`: of equal ones any. Waits for how
   * many queries read each list.
   *
   * @param queries [queries, dim], of any float dtype
   * @returns values and indices [queries, count]; where the lists have fewer vectors the value is -Infinity and the index -1
   * @throws ERR_SHAPE, ERR_OPTION, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  search(queries: Tensor, options: SearchOptions): Neighbours {
    checkVectors(queries, 'queries');
    const { means } = this.#lists;
    if (queries.shape[1] !== this.dim)
      throw shapeError(
        `queries has shape ${show(queries.shape)}; it must be [queries, ${this.dim}], as the vectors are`,
      );
    queries.operand('queries', means.backend);
    checkOptions(options, ['count', 'probes']);
    const { count, probes = Math.min(8, this.lists) } = options;
    checkInteger(count, 'count', 1);
    checkInteger(probes, 'probes', 1, this.lists);
    const [all] = queries.shape;
    if (all * probes > mostVectors)
      throw shapeError(`${all} queries read ${probes} lists each; at most 2^24 can be read in all`);
    return withoutRecording(() => scope(() => this.#search(wide(queries), count, probes)));
  }

  #search(queries: Wide, count: number, probes: number): Neighbours {
    const { ids, means, offsets } = this.#lists;
    const [all] = queries.shape;
    const { backend } = queries;
    if (all === 0)
      return {
        values: filled(backend, [0, count], 'float32', 0) as Wide,
        indices: filled(backend, [0, count], 'int32', 0) as Indices,
      };
    const read = knn(queries as Tensor, means as Tensor, { count: probes, metric: this.metric }).indices;
    const lists = read.reshape([all * probes]) as Indices;
    const readers = countsOf(lists, this.lists).toFloat32Sync();
    // Queries one after another that read the same list.
    const order = sort(cast(lists, 'float32') as Tensor).indices;
    const rows = cast(queryOf(cast(order, 'float32'), probes), 'int32') as Indices;
    const byList = embedding(queries as Tensor, rows) as Wide;
    const parts: (readonly [values: Wide, places: Wide])[] = [];
    let from = 0;
    for (let list = 0; list < this.lists; list++) {
      const [to, begin, end] = [from + readers[list], offsets[list], offsets[list + 1]];
      const atOnce = Math.max(1, Math.floor(scoresAtOnce / Math.max(1, end - begin)));
      for (; from < to; from += atOnce) {
        const own = byList.slice(0, from, Math.min(to, from + atOnce)) as Wide;
        parts.push(scope(() => this.#inList(own, begin, end, count)));
      }
      from = to;
    }
    const [values, places] = [0, 1].map((i) => concat(parts.map((part) => part[i] as Wide), 0)) as [Wide, Wide]; // biome-ignore format: one line
    // Back to the order of the queries, all probes of one beside each other.
    const back = sort(cast(order, 'float32') as Tensor).indices;
    const ofQuery = (t: Wide) => embedding(t as Tensor, back).reshape([all, probes * count]) as Wide;
    const best = topK(ofQuery(values), count);
    const chosen = takeAlongAxis(ofQuery(places), best.indices);
    const missing = filled(backend, [1, 1], 'float32', -1) as Wide;
    const named = embedding(concat([missing, ids], 0) as Tensor, cast(add(chosen, 1), 'int32') as Indices);
    const isDistance = this.metric === 'euclidean';
    const sizes = isDistance ? (sum(square(queries), -1, { keepDims: true }) as Wide) : undefined;
    return {
      values: (sizes ? sub(best.values, sizes) : best.values) as Wide,
      indices: cast(named.reshape([all, count]), 'int32') as Indices,
    };
  }

  /** The best of one list, [queries, count]: scores, without |q|^2, and places among all vectors; -Infinity and -1 of none. */
  #inList(queries: Wide, begin: number, end: number, count: number): readonly [Wide, Wide] {
    const [rows] = queries.shape;
    const { backend } = queries;
    const none = (n: number, value: number) => filled(backend, [rows, n], 'float32', value) as Wide;
    if (begin === end) return [none(count, Number.NEGATIVE_INFINITY), none(count, -1)];
    const own = this.#lists.vectors.slice(0, begin, end);
    const isDistance = this.metric === 'euclidean';
    const products = matmul(queries as Tensor, own.transpose(0, 1) as Tensor, { alpha: isDistance ? 2 : 1 });
    const scores = isDistance ? sub(products, sum(square(own as Tensor), -1)) : products;
    const found = topK(scores as Tensor, Math.min(count, end - begin));
    const places = add(cast(found.indices, 'float32'), begin) as Wide;
    const lacking = count - (end - begin);
    if (lacking <= 0) return [found.values as Wide, places];
    return [
      concat([found.values as Wide, none(lacking, Number.NEGATIVE_INFINITY)], 1) as Wide,
      concat([places, none(lacking, -1)], 1) as Wide,
    ];
  }

  /**
   * Adds vectors to the lists as they are; the means stay. Their indices go on from `size`.
   *
   * @param vectors [vectors, dim]
   * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  add(vectors: Tensor): void {
    checkVectors(vectors, 'vectors');
    const { means, ids, offsets } = this.#lists;
    const [count, dim] = vectors.shape;
    if (dim !== this.dim)
      throw shapeError(
        `vectors has shape ${show(vectors.shape)}; it must be [vectors, ${this.dim}], as the others are`,
      );
    if (this.size + count > mostVectors)
      throw shapeError(`there would be ${this.size + count} vectors; there must be at most 2^24`);
    vectors.operand('vectors', means.backend);
    const before = this.#lists;
    withoutRecording(() =>
      scope(() => {
        const all = concat([before.vectors, wide(vectors)], 0) as Wide;
        const names = countUp(count, vectors, this.size).reshape([count, 1]);
        const own = tensor(Float32Array.from(listsOf(offsets)), [this.size], { device: means.device as DeviceName });
        const nearest = cast(nearestMean(vectors, means), 'float32');
        const lists = cast(concat([own, nearest], 0), 'int32') as Indices;
        this.#lists = sorted(means, all, concat([ids, names as Wide], 0) as Wide, lists);
        return { vectors: this.#lists.vectors, ids: this.#lists.ids };
      }),
    );
    before.vectors.dispose();
    before.ids.dispose();
  }

  /**
   * Writes the index to a safetensors file, which is replaced as a whole, with checksums.
   *
   * @throws ERR_FILE, ERR_OPTION, ERR_DISPOSED
   */
  save(path: FilePath): Promise<void> {
    const { means, vectors, ids, offsets } = this.#lists;
    const own = [means, vectors, ids].map((t) => t.toFloat32());
    const entry = (name: string, shape: readonly number[], i: number) => {
      const dtype = 'F32' as const;
      return { name, dtype, shape, data: async () => (await own[i]) as Float32Array };
    };
    return writeSafetensors(
      path,
      [
        entry('means', means.shape, 0),
        entry('vectors', vectors.shape, 1),
        entry('ids', [this.size], 2),
        { name: 'offsets', dtype: 'I32', shape: [offsets.length], data: offsets },
      ],
      { checksums: true, metadata: { 'flashattn.vectorIndex': format, metric: this.metric } },
    );
  }

  /**
   * Reads what `save` has written.
   *
   * @throws ERR_FILE where the file is none, or says what no index can be; ERR_DTYPE, ERR_DEVICE, ERR_OUT_OF_MEMORY
   */
  static async load(path: FilePath, options: LoadOptions = {}): Promise<VectorIndex> {
    checkOptions(options, ['device']);
    const name = checkPath(path);
    await using file = await openSafetensors(path);
    const { metric, vectors, means } = readHeader(name, file);
    const offsets = await file.read('offsets', 'I32');
    const ids = await file.read('ids', 'F32');
    checkOffsets(name, offsets, vectors[0]);
    checkIds(name, ids);
    const [stored, ofLists] = [await file.read('vectors', 'F32'), await file.read('means', 'F32')];
    const made: Tensor[] = [];
    const make = (values: Float32Array, shape: readonly number[]) => {
      const t = tensor(values, shape, options);
      made.push(t as Tensor);
      return t as unknown as Wide;
    };
    try {
      const lists = { means: make(ofLists, means), vectors: make(stored, vectors), ids: make(ids, [ids.length, 1]) };
      return new VectorIndex({ ...lists, offsets }, metric);
    } catch (error) {
      for (const t of made) t.dispose();
      throw error;
    }
  }

  dispose(): void {
    for (const t of Object.values(tensorsOf(this.#lists))) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The list of each vector, in order. */
function* listsOf(offsets: Int32Array): Generator<number> {
  for (let list = 0; list + 1 < offsets.length; list++)
    for (let i = offsets[list]; i < offsets[list + 1]; i++) yield list;
}

function readHeader(path: string, file: SafetensorsFile) {
  const version = file.metadata['flashattn.vectorIndex'];
  if (version !== format)
    throw fileError(path, version === undefined ? 'this is no index of vectors' : `this is an index of version ${show(version)}; this package reads ${format}`); // biome-ignore format: one line
  const { metric } = file.metadata;
  if (metric !== 'dot' && metric !== 'euclidean')
    throw fileError(path, `metric of its metadata is ${show(metric)}; it must be 'dot' or 'euclidean'`);
  const shapeOf = (name: string): Shape => {
    const stored = file.tensors.get(name);
    if (!stored) throw fileError(path, `tensor ${show(name)} is missing`);
    return stored.shape;
  };
  const [means, vectors, ids, offsets] = ['means', 'vectors', 'ids', 'offsets'].map(shapeOf) as [Shape, Shape, Shape, Shape]; // biome-ignore format: one line
  const [lists = 0, dim = 0] = means;
  const [count = 0] = vectors;
  const fits =
    means.length === 2 && vectors.length === 2 && ids.length === 1 && offsets.length === 1 &&
    lists >= 1 && dim >= 1 && vectors[1] === dim && ids[0] === count && offsets[0] === lists + 1 && count <= mostVectors; // biome-ignore format: pairs
  if (!fits)
    throw fileError(
      path,
      `means, vectors, ids and offsets have shapes ${[means, vectors, ids, offsets].map(show).join(', ')}; they must be ` +
        '[lists, dim], [vectors, dim], [vectors] and [lists + 1]',
    );
  return { metric, means, vectors } as const;
}

function checkOffsets(path: string, offsets: Int32Array, count: number): void {
  const bad = offsets.findIndex((x, i) => x < (i === 0 ? 0 : offsets[i - 1]));
  if (bad >= 0 || offsets[0] !== 0 || offsets[offsets.length - 1] !== count)
    throw fileError(
      path,
      `offsets must rise from 0 to ${count}; they are ${show(Array.from(offsets.subarray(0, 8)))}...`,
    );
}

function checkIds(path: string, ids: Float32Array): void {
  const seen = new Uint8Array(ids.length);
  for (const [i, id] of ids.entries()) {
    if (!(Number.isInteger(id) && id >= 0 && id < ids.length) || seen[id] === 1)
      throw fileError(path, `ids[${i}] is ${id}; there must be each number below ${ids.length} once`);
    seen[id] = 1;
  }
}
