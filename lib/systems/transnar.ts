import { attention, type Shape4 } from '../attention/attention.js';
import { checkInteger, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { fused, where } from '../ops/elementwise.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkPositions, narrow } from './inputs.js';
import { checkSequence, project, type Weight, weightsOf } from './weights.js';

/** Matrices are [out, in]; biases may be left out. */
export interface TransnarWeights {
  /** [1], before its sigmoid or tanh. */
  readonly gate: Weight;
  /** [dim, dim], [dim] */
  readonly query: Weight;
  readonly queryBias?: Weight | undefined;
  /** [dim, node dim], [dim] */
  readonly key: Weight;
  readonly keyBias?: Weight | undefined;
  readonly value: Weight;
  readonly valueBias?: Weight | undefined;
  /** [dim, dim], [dim] */
  readonly out: Weight;
  readonly outBias?: Weight | undefined;
}

const weightNames = [
  ...(['gate', 'query', 'queryBias', 'key', 'keyBias', 'value', 'valueBias', 'out', 'outBias'] as const),
] as const satisfies readonly (keyof TransnarWeights)[];

export interface TransnarOptions {
  /** A divisor of dim. */
  readonly heads: number;
  /** Which nodes are real: bool [batch, nodes]; the others are seen by no token. Default all. */
  readonly mask?: Tensor<'bool', Shape>;
  /**
   * What opens the gate: 'sigmoid' (default) as undoubtable/TransNAR, where 0 is half open; 'tanh' as in Flamingo, which the
   * paper follows, where 0 is closed.
   */
  readonly gating?: 'sigmoid' | 'tanh';
}

const gates = {
  sigmoid: fused(function plusGated(x, gate, update) {
    return x.add(gate.sigmoid().mul(update));
  }),
  tanh: fused(function plusGated(x, gate, update) {
    return x.add(gate.tanh().mul(update));
  }),
} as const;

/**
 * The cross-attention of TransNAR (Bounsi et al., "Transformers meet Neural Algorithmic Reasoners", 2024, arXiv:2406.09308)
 * from tokens to the nodes of a graph network: out = text + gate(attention(text Wq^T + bq, nodes Wk^T + bk, nodes Wv^T + bv)
 * Wo^T + bo), with scale 1 / sqrt(head dim). There is no code by the authors; this follows undoubtable/TransNAR. Where no node
 * is real attention gives 0.
 *
 * @param text [batch, seq, dim]
 * @param nodes [batch, nodes, node dim], of the dtype of text
 * @param weights of any floating-point dtype; they are used in that of text
 * @returns of the shape and dtype of text
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function transnarCrossAttention<D extends FloatDType>(
  text: Tensor<D, Shape>,
  nodes: Tensor<NoInfer<D>, Shape>,
  weights: TransnarWeights,
  options: TransnarOptions,
): Tensor<D, Shape> {
  checkSequence(text, 'text');
  checkSequence(nodes, 'nodes', 'batch, nodes, node dim');
  const [tokens, graph] = [text as Tensor, nodes as Tensor];
  const [batch, seq, dim] = tokens.shape;
  const [graphs, count, nodeDim] = graph.shape;
  if (graphs !== batch)
    throw shapeError(
      `text has shape ${show(tokens.shape)} and nodes ${show(graph.shape)}; they must have the same batch`,
    );
  if (graph.dtype !== tokens.dtype)
    throw new FlashAttnError('ERR_DTYPE', `nodes is ${graph.dtype}; it must be ${tokens.dtype} as text is`);
  graph.operand('nodes', tokens.backend);
  checkOptions(options, ['heads', 'mask', 'gating']);
  const { heads, mask, gating = 'sigmoid' } = options;
  checkInteger(heads, 'heads', 1);
  if (dim % heads !== 0)
    throw shapeError(`text has shape ${show(tokens.shape)}; dim must be a multiple of ${heads} heads`);
  if (mask !== undefined) checkPositions(mask, graph);
  checkWord(gating, 'gating', ['sigmoid', 'tanh']);
  const check = weightsOf(weights, weightNames, tokens);
  check('gate', [1], '1');
  for (const name of ['query', 'out'] as const) check(name, [dim, dim], 'dim, dim');
  for (const name of ['key', 'value'] as const) check(name, [dim, nodeDim], 'dim, node dim');
  for (const name of ['queryBias', 'keyBias', 'valueBias', 'outBias'] as const) check(name, [dim], 'dim', 'optional');
  const byHead = (t: Tensor, n: number) =>
    t.reshape([batch, n, heads, dim / heads]) as unknown as Tensor<FloatDType, Shape4>;
  return scope(() => {
    const { query, queryBias, key, keyBias, value, valueBias } = weights;
    const hidden = mask && { bias: where(mask, 0, Number.NEGATIVE_INFINITY).reshape([batch, 1, 1, count]) };
    const { out } = attention(
      byHead(project(tokens, query, queryBias), seq),
      byHead(project(graph, key, keyBias), count),
      byHead(project(graph, value, valueBias), count),
      { ...hidden },
    );
    const update = project((out as unknown as Tensor).reshape([batch, seq, dim]), weights.out, weights.outBias);
    return gates[gating](tokens, narrow(weights.gate, tokens), update);
  }) as Tensor<D, Shape>;
}
