import { attention, type Shape4 } from '../attention/attention.js';
import { checkBoolean, checkInteger, checkObject, checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { add, mul } from '../ops/elementwise.js';
import { gatherRows, RowMap } from '../ops/gather.js';
import { matmul } from '../ops/matmul.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkAlike, checkQkv, type Sequence } from './inputs.js';

export interface BinaryPartitionOptions {
  /** Nodes that a leaf sees on either side at each level. Default 1. */
  readonly step?: number;
  /** Leaves see nodes before them alone. Default false. */
  readonly causal?: boolean;
  /** Levels from here on share the types of their edges. Default 4. */
  readonly clipDistance?: number;
}

/** Who sees whom among the spans of a binary partition; see `binaryPartition`. */
export class BinaryPartition {
  /** @internal */
  constructor(
    readonly length: number,
    /** The leaves first, then each level of spans, up to the root. */
    readonly nodes: number,
    /** More than the largest type of an edge. */
    readonly types: number,
    /** The edges of node i are those from offsets[i] to offsets[i + 1] - 1. */
    readonly offsets: Int32Array,
    /** The node that is seen. */
    readonly sources: Int32Array,
    readonly edgeTypes: Int32Array,
    /** @internal */
    readonly sourceRows: RowMap,
    /** @internal */
    readonly typeRows: RowMap,
  ) {}

  /** Of a list with an entry an edge: [source, destination, type]. */
  get edges(): readonly (readonly [source: number, destination: number, type: number])[] {
    return Array.from({ length: this.nodes }, (_, node) =>
      Array.from({ length: this.offsets[node + 1] - this.offsets[node] }, (_, i) => {
        const at = this.offsets[node] + i;
        return [this.sources[at], node, this.edgeTypes[at]] as const;
      }),
    ).flat();
  }
}

/** Where each level begins among the nodes, and where the last ends. */
function levelsOf(length: number): number[] {
  const begins = [0];
  for (let size = length; size > 0; size = size === 1 ? 0 : Math.ceil(size / 2))
    begins.push((begins.at(-1) ?? 0) + size);
  return begins;
}

type Sees = (source: number, destination: number, type: number) => void;

/** The nodes that a leaf sees, from its neighbours to larger and larger spans. */
function contextOf(
  leaf: number,
  begins: readonly number[],
  { step, causal, clip }: { step: number; causal: boolean; clip: number },
  sees: Sees,
): void {
  const perLevel = 2 * step + 1;
  let [left, right] = [leaf - 1, leaf + 1];
  // A span that an earlier level has begun to cover is seen by its other half.
  let [leftHalf, rightHalf] = [false, false];
  let ancestor = leaf;
  for (let level = 0; level + 1 < begins.length; level++) {
    const [begin, size] = [begins[level], begins[level + 1] - begins[level]];
    const type = perLevel * Math.min(level, clip);
    for (let k = 0; k < step; k++) {
      if (!causal && right < size) {
        sees(rightHalf ? begins[level - 1] + 2 * right + 1 : begin + right, leaf, type + 2 * (k + 1));
        rightHalf = false;
      }
      right++;
      if (left >= 0) {
        sees(leftHalf ? begins[level - 1] + 2 * left : begin + left, leaf, type + 2 * k + 1);
        leftHalf = false;
      }
      left--;
    }
    if (left % 2 === 0) leftHalf = true;
    if (right % 2 !== 0) rightHalf = true;
    [left, right] = [left >> 1, right >> 1];
    sees(leaf, begin + ancestor, type);
    ancestor >>= 1;
  }
}

/**
 * The graph of a BP-Transformer over the leaves of a sequence and the spans of 2, 4, 8, ... of them: a span sees its leaves,
 * and a leaf sees itself and at every level `step` spans on each side that begin where those of the level below end, so that
 * context is coarser the farther it is. An edge of level j has type (2 step + 1) min(j, clipDistance), + 2 k + 1 to the k-th
 * span at the left, + 2 (k + 1) to that at the right, + 0 from a span to a leaf.
 *
 * Ye et al., "BP-Transformer" (2019), arXiv:1911.04070, edge for edge as the authors' graph builder: where a level has an odd
 * number of spans, an edge that should lead to the missing half of the last one leads to the first span of the next level,
 * and a span may be seen twice, which counts twice.
 *
 * Made on the host; length log length edges, times a constant.
 *
 * @param length leaves
 * @throws ERR_OPTION
 */
export function binaryPartition(length: number, options: BinaryPartitionOptions = {}): BinaryPartition {
  checkInteger(length, 'length', 0, 2 ** 24);
  checkOptions(options, ['step', 'causal', 'clipDistance']);
  const { step = 1, causal = false, clipDistance = 4 } = options;
  checkInteger(step, 'step', 1);
  checkBoolean(causal, 'causal');
  checkInteger(clipDistance, 'clipDistance', 0);
  const begins = levelsOf(length);
  const nodes = begins.at(-1) ?? 0;
  const seen: { source: number; type: number }[][] = Array.from({ length: nodes }, () => []);
  for (let leaf = 0; leaf < length; leaf++)
    contextOf(leaf, begins, { step, causal, clip: clipDistance }, (source, destination, type) =>
      seen[destination].push({ source, type }),
    );
  const offsets = new Int32Array(nodes + 1);
  for (const [node, edges] of seen.entries()) offsets[node + 1] = offsets[node] + edges.length;
  const edges = seen.flat();
  const sources = Int32Array.from(edges, ({ source }) => source);
  const edgeTypes = Int32Array.from(edges, ({ type }) => type);
  const types = edgeTypes.reduce((most, type) => Math.max(most, type + 1), 0);
  const rows = [RowMap.of(sources, nodes), RowMap.of(edgeTypes, types)] as const;
  return new BinaryPartition(length, nodes, types, offsets, sources, edgeTypes, ...rows);
}

export interface BptOptions {
  readonly graph: BinaryPartition;
  /** A vector for each type of edges, added to the key: [at least graph.types, dim], of the dtype of q. */
  readonly relative: Tensor<FloatDType, Shape>;
}

function checkGraph(graph: unknown, relative: unknown, argument: string, nodes: number, dim: number, like: Tensor) {
  if (!(graph instanceof BinaryPartition)) throw mustBe('graph', graph, 'what binaryPartition gives');
  if (graph.nodes !== nodes) throw shapeError(`graph has ${graph.nodes} nodes, and there are ${nodes}`);
  checkAlike(relative, argument, [-1, dim], 'types, dim', like);
  if (relative.shape[0] < graph.types)
    throw shapeError(
      `${argument} has shape ${show(relative.shape)}; it must have a row for each of the ${graph.types} types of edges`,
    );
}

/** Every node attends to the nodes that it sees, as a sequence of one query with its edges as keys. */
function attendEdges(q: Tensor, k: Tensor, v: Tensor, relative: Tensor, graph: BinaryPartition): Tensor {
  const [batch, nodes, heads, dim] = q.shape;
  const { offsets, sourceRows, typeRows } = graph;
  const edges = sourceRows.rows;
  const ofEdges = (t: Tensor) => gatherRows(t.contiguous(), sourceRows);
  const types = gatherRows(relative.slice(0, 0, graph.types).contiguous().reshape([1, graph.types, dim]), typeRows);
  const keys = (add(ofEdges(k), types.reshape([1, edges, 1, dim])) as Sequence).reshape([batch * edges, heads, dim]);
  const values = ofEdges(v).reshape([batch * edges, heads, v.shape[3]]);
  const queries = q.contiguous().reshape([batch * nodes, heads, dim]);
  const packed = Int32Array.from({ length: batch * nodes + 1 }, (_, at) => {
    const entry = nodes === 0 ? 0 : Math.floor(at / nodes);
    return entry * edges + offsets[at - entry * nodes];
  });
  const each = Int32Array.from({ length: batch * nodes + 1 }, (_, at) => at);
  const { out } = attention(queries, keys, values, { cuSeqlensQ: each, cuSeqlensK: packed });
  return (out as Tensor).reshape([batch, nodes, heads, v.shape[3]]);
}

/**
 * Attention along the edges of a binary partition: out_i = sum_e softmax_e(q_i . (k_source(e) + relative_type(e)) / sqrt(dim))
 * v_source(e) over the edges e of node i; an edge that is there twice counts twice. Ye et al., "BP-Transformer" (2019),
 * arXiv:1911.04070.
 *
 * Copies keys and values to each edge; time and memory grow with the edges.
 *
 * @param q [batch, nodes, heads, dim]: the leaves first, then each level of spans
 * @param k [batch, nodes, heads, dim]
 * @param v [batch, nodes, heads, value dim]
 * @returns [batch, nodes, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function binaryPartitionAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: BptOptions,
): Tensor<D, Shape4> {
  const [query, key, value] = [q, k, v] as unknown as readonly [Tensor, Tensor, Tensor];
  checkQkv(query, key, value, { self: true });
  checkOptions(options, ['graph', 'relative']);
  const { graph, relative } = options;
  checkGraph(graph, relative, 'relative', query.shape[1], query.shape[3], query);
  return scope(() => {
    if (query.size === 0 || value.size === 0) return mul(value, 1);
    return attendEdges(query, key, value, relative, graph);
  }) as unknown as Tensor<D, Shape4>;
}

/** Matrices are [out, in], of the dtype of h. */
export interface BptGraphWeights {
  /** [width, width] each; queries, keys and values have width / heads dims a head. */
  readonly Wq: Tensor<FloatDType, Shape>;
  readonly Wk: Tensor<FloatDType, Shape>;
  readonly Wv: Tensor<FloatDType, Shape>;
  readonly Wo: Tensor<FloatDType, Shape>;
  /** [at least graph.types, width / heads] */
  readonly relative: Tensor<FloatDType, Shape>;
}

export interface BptGraphOptions {
  readonly graph: BinaryPartition;
  readonly heads: number;
}

/**
 * `binaryPartitionAttention` (Ye et al. 2019, arXiv:1911.04070) of the nodes themselves, between projections: with q = h
 * Wq^T, k = h Wk^T, v = h Wv^T in heads, out = attention(q, k, v) Wo^T. Nodes without edges get 0.
 *
 * @param h [batch, nodes, width]: the leaves first, then each level of spans
 * @returns [batch, nodes, width]
 * @throws as `binaryPartitionAttention`
 */
export function binaryPartitionGraphAttention<D extends FloatDType>(
  h: Tensor<D, Shape>,
  weights: BptGraphWeights,
  options: BptGraphOptions,
): Tensor<D, Shape> {
  checkTensor(h, 'h');
  const x = h as unknown as Tensor;
  if (x.shape.length !== 3) throw shapeError(`h has shape ${show(x.shape)}; it must be [batch, nodes, width]`);
  const [batch, nodes, width] = x.shape;
  checkObject(weights, 'weights');
  checkOptions(weights, ['Wq', 'Wk', 'Wv', 'Wo', 'relative'], 'weights');
  checkOptions(options, ['graph', 'heads']);
  const { graph, heads } = options;
  checkInteger(heads, 'heads', 1);
  if (width % heads !== 0) throw shapeError(`h has width ${width}; it must be a multiple of the ${heads} heads`);
  for (const name of ['Wq', 'Wk', 'Wv', 'Wo'] as const)
    checkAlike(weights[name], `weights.${name}`, [width, width], 'width, width', x);
  checkGraph(graph, weights.relative, 'weights.relative', nodes, width / heads, x);
  return scope(() => {
    if (x.size === 0) return filled(x.backend, x.shape, x.dtype, 0) as Tensor;
    const project = (W: Tensor) => matmul(x, W.transpose(0, 1)).reshape([batch, nodes, heads, width / heads]) as Tensor;
    const { Wq, Wk, Wv, Wo, relative } = weights;
    const out = attendEdges(project(Wq), project(Wk), project(Wv), relative, graph);
    return matmul(out.contiguous().reshape([batch, nodes, width]), Wo.transpose(0, 1));
  }) as Tensor<D, Shape>;
}
