/** Runs a problem of the references through the library. */
import {
  type AttentionOptions,
  attention,
  attentionBackward,
  type CommonOptions,
  type RelativeBias,
  type Tensor,
} from 'flashattn';
import type { Problem } from '../oracle/problem.js';
import type { Named } from '../oracle/sensitivity.js';
import { type CaseDType, extrasDType, type Instance } from './case.js';
import { make, place, type ViewKind } from './views.js';

export interface RunOptions {
  readonly dtype?: CaseDType | undefined;
  readonly views?: readonly [ViewKind, ViewKind, ViewKind, ViewKind] | undefined;
  readonly deterministic?: boolean | undefined;
  readonly wideExtras?: boolean | undefined;
  /** The problem's mask, as the library takes it. */
  readonly mask?: AttentionOptions['mask'];
  /** Leave out the backward pass. */
  readonly forwardOnly?: boolean | undefined;
}

type Side = 'query' | 'key' | 'value' | 'out';

export function shapeOf(p: Problem, side: Side): number[] {
  const [length, heads] = side === 'query' || side === 'out' ? [p.queryLength, p.queryHeads] : [p.keyLength, p.kvHeads];
  const dim = side === 'query' || side === 'key' ? p.headDim : p.valueDim;
  if (p.layout === 'varlen') return [length, heads, dim];
  return p.layout === 'bshd' ? [p.batch, length, heads, dim] : [p.batch, heads, length, dim];
}

export function lseShape(p: Problem): number[] {
  return p.layout === 'varlen' ? [p.queryHeads, p.queryLength] : [p.batch, p.queryHeads, p.queryLength];
}

/** Options of the library for a problem, with terms of `dtype`. `own` takes hold of the tensors that are made for it. */
export function optionsOf(p: Problem, dtype: CaseDType, own: <T extends Tensor>(t: T) => T): AttentionOptions {
  const relativeBias: RelativeBias | undefined = p.relative && {
    table: own(make(p.relative.table, [p.relative.bucketCount, p.queryHeads], dtype)),
    buckets: p.relative.buckets,
    origin: p.relative.origin,
    ...(p.relative.queryPosition && { queryPosition: p.relative.queryPosition }),
    ...(p.relative.keyPosition && { keyPosition: p.relative.keyPosition }),
  };
  const perBatch = p.alibi && p.alibi.length > p.queryHeads;
  const common: CommonOptions = {
    ...(p.scale !== undefined && { scale: p.scale }),
    ...(p.causal !== undefined && { causal: p.causal }),
    ...(p.align && { align: p.align }),
    ...(p.window && { window: p.window }),
    ...(p.softcap !== undefined && { softcap: p.softcap }),
    ...(p.bias && { bias: own(make(p.bias.values, p.bias.shape, dtype)) }),
    ...(p.alibi && {
      alibi: perBatch
        ? (own(make(p.alibi, [p.batch, p.queryHeads], 'float32')) as Tensor<'float32'>)
        : Float32Array.from(p.alibi),
    }),
    ...(relativeBias && { relativeBias }),
    ...(p.sink && { sink: own(make(p.sink, [p.queryHeads], dtype)) }),
    ...(p.dropout && { dropout: p.dropout }),
  };
  if (p.layout === 'varlen') return { ...common, cuSeqlensQ: p.cuSeqlensQ ?? [], cuSeqlensK: p.cuSeqlensK ?? [] };
  const lengths = { ...(p.qLens && { qLens: p.qLens }), ...(p.kLens && { kLens: p.kLens }) };
  return { ...common, ...lengths, layout: p.layout };
}

export function widen(t: Tensor): Float64Array {
  return Float64Array.from(t.toFloat32Sync());
}

/** Outputs and gradients under the names of the oracle. */
export function runLibrary({ problem: p, dOut, dLse }: Instance, run: RunOptions = {}): Named {
  const owned: Tensor[] = [];
  const own = <T extends Tensor>(t: T): T => {
    owned.push(t);
    return t;
  };
  const dtype = run.dtype ?? 'float32';
  const [qView = 'plain', kView = 'plain', vView = 'plain', dOutView = 'plain'] = run.views ?? [];
  const input = (values: Float64Array, side: Side, kind: ViewKind): Tensor => {
    const { parent, view } = place(values, shapeOf(p, side), dtype, p.layout, kind);
    own(parent);
    return own(view);
  };
  try {
    const q = input(p.query, 'query', qView);
    const k = input(p.key, 'key', kView);
    const v = input(p.value, 'value', vView);
    const options = { ...optionsOf(p, extrasDType({ ...run, dtype }), own), ...(run.mask && { mask: run.mask }) };
    const { out, lse } = attention(q, k, v, options);
    own(out);
    own(lse);
    const results = { out: widen(out), lse: widen(lse) };
    if (run.forwardOnly) return results;
    const gradients = attentionBackward(
      input(dOut, 'out', dOutView),
      { q, k, v, out, lse },
      {
        ...options,
        ...(dLse && { dLse: own(make(dLse, lseShape(p), 'float32') as Tensor<'float32'>) }),
        ...(run.deterministic !== undefined && { deterministic: run.deterministic }),
      },
    );
    const named: Record<string, Tensor | undefined> = {
      dQuery: gradients.dq,
      dKey: gradients.dk,
      dValue: gradients.dv,
      dBias: gradients.dBias,
      dRelativeBias: gradients.dRelativeBias,
      dSink: gradients.dSink,
    };
    const widened = Object.entries(named).flatMap(([name, t]) => (t ? [[name, widen(own(t))] as const] : []));
    return { ...results, ...Object.fromEntries(widened) };
  } finally {
    for (const t of owned) t.dispose();
  }
}
