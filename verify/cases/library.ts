/** Runs a problem of the references through the library. */
import {
  type AttentionOptions,
  attention,
  attentionBackward,
  type BackwardExtras,
  type CommonOptions,
  type DeviceName,
  lookup,
  type RelativeBias,
  type ScoreMod,
  type Shape,
  type Tensor,
  tensor,
} from 'flashattn';
import type { Problem } from '../oracle/problem.js';
import type { ScoreMod as OracleScoreMod, ScoreModKind, ScoreTable } from '../oracle/scoreMods.js';
import type { Named } from '../oracle/sensitivity.js';
import { extrasDType, type Instance } from './case.js';
import { testDevice } from './device.js';
import type { CaseDType } from './views.js';
import { make, place, type ViewKind } from './views.js';

export interface RunOptions {
  /** Default `testDevice`. */
  readonly device?: DeviceName | undefined;
  readonly dtype?: CaseDType | undefined;
  readonly views?: readonly [ViewKind, ViewKind, ViewKind, ViewKind] | undefined;
  readonly deterministic?: boolean | undefined;
  readonly wideExtras?: boolean | undefined;
  /** The problem's mask, as the library takes it. */
  readonly mask?: AttentionOptions['mask'];
  /** Leave out the backward pass. */
  readonly forwardOnly?: boolean | undefined;
}

export type Side = 'query' | 'key' | 'value' | 'out';

export function shapeOf(p: Problem, side: Side): number[] {
  const [length, heads] = side === 'query' || side === 'out' ? [p.queryLength, p.queryHeads] : [p.keyLength, p.kvHeads];
  const dim = side === 'query' || side === 'key' ? p.headDim : p.valueDim;
  if (p.layout === 'varlen') return [length, heads, dim];
  return p.layout === 'bshd' ? [p.batch, length, heads, dim] : [p.batch, heads, length, dim];
}

export function lseShape(p: Problem): number[] {
  return p.layout === 'varlen' ? [p.queryHeads, p.queryLength] : [p.batch, p.queryHeads, p.queryLength];
}

type Table = Tensor<'float32' | 'int32', Shape>;

/** The functions of the references, as users of the library write them. */
const scoreMods: Readonly<Record<ScoreModKind, (table: Table) => ScoreMod>> = {
  relative: () => (score, _b, _h, i, j) => score.add(j.sub(i).mul(0.125)),
  slopes: (slopes) => (score, _b, h, i, j) => score.sub(lookup(slopes, h).mul(i.sub(j).abs())),
  softcap: () => (score) => score.div(1.5).tanh().mul(1.5),
  documents: (ids) => (score, _b, _h, i, j) => lookup(ids, i).equal(lookup(ids, j)).where(score, -Infinity),
  table: (bias) => (score, b, h, i, j) => score.mul(b.mul(-0.25).add(1)).add(lookup(bias, h, i, j)),
};

function tableOf({ values, shape, dtype }: ScoreTable, device: DeviceName): Table {
  const all = [...shape];
  return dtype === 'int32'
    ? (tensor(Int32Array.from(values), all, { dtype: 'int32', device }) as Table)
    : (tensor(Float32Array.from(values), all, { device }) as Table);
}

/** `own` takes hold of the tensors that it looks up. */
function scoreModOf(p: OracleScoreMod, own: <T extends Tensor>(t: T) => T, device: DeviceName): ScoreMod {
  const [table] = p.tables.map((each) => own(tableOf(each, device) as unknown as Tensor));
  return scoreMods[p.kind](table as unknown as Table);
}

/** Options of the library for a problem, with terms of `dtype`. `own` takes hold of the tensors that are made for it. */
export function optionsOf(
  p: Problem,
  dtype: CaseDType,
  own: <T extends Tensor>(t: T) => T,
  device: DeviceName = testDevice,
): AttentionOptions {
  const relativeBias: RelativeBias | undefined = p.relative && {
    table: own(make(p.relative.table, [p.relative.bucketCount, p.queryHeads], dtype, device)),
    buckets: p.relative.buckets,
    origin: p.relative.origin,
    ...(p.relative.queryPosition && { queryPosition: p.relative.queryPosition }),
    ...(p.relative.keyPosition && { keyPosition: p.relative.keyPosition }),
  };
  const perBatch = p.alibi && p.alibi.length > p.queryHeads;
  const common: CommonOptions = {
    ...(p.scale !== undefined && { scale: p.scale }),
    ...(p.causal !== undefined && { causal: p.causal }),
    ...(p.align && p.offset === undefined && { align: p.align }),
    ...(p.offset !== undefined && { offset: p.offset }),
    ...(p.window && { window: p.window }),
    ...(p.softcap !== undefined && { softcap: p.softcap }),
    ...(p.bias && { bias: own(make(p.bias.values, p.bias.shape, dtype, device)) }),
    ...(p.alibi && {
      alibi: perBatch
        ? (own(make(p.alibi, [p.batch, p.queryHeads], 'float32', device)) as Tensor<'float32'>)
        : Float32Array.from(p.alibi),
    }),
    ...(relativeBias && { relativeBias }),
    ...(p.scoreMod && { scoreMod: scoreModOf(p.scoreMod, own, device) }),
    ...(p.sink && { sink: own(make(p.sink, [p.queryHeads], dtype, device)) }),
    ...(p.dropout && { dropout: p.dropout }),
  };
  const lengths = { ...(p.qLens && { qLens: p.qLens }), ...(p.kLens && { kLens: p.kLens }) };
  if (p.layout === 'varlen')
    return { ...common, ...lengths, cuSeqlensQ: p.cuSeqlensQ ?? [], cuSeqlensK: p.cuSeqlensK ?? [] };
  return { ...common, ...lengths, layout: p.layout };
}

export function widen(t: Tensor): Float64Array {
  return Float64Array.from(t.toFloat32Sync());
}

/** A problem of the references on a device, to be computed any number of times. */
export class LibraryProblem {
  readonly #owned: Tensor[] = [];
  readonly #run: RunOptions;
  readonly #options: AttentionOptions;
  readonly #extras: BackwardExtras;
  readonly #inputs: { readonly q: Tensor; readonly k: Tensor; readonly v: Tensor; readonly dOut?: Tensor };

  constructor({ problem: p, dOut, dLse }: Instance, run: RunOptions = {}) {
    const { device = testDevice, dtype = 'float32', views = [], forwardOnly } = run;
    const own = <T extends Tensor>(t: T): T => {
      this.#owned.push(t);
      return t;
    };
    const input = (values: Float64Array, side: Side, kind: ViewKind = 'plain'): Tensor => {
      const { parent, view } = place(values, shapeOf(p, side), dtype, p.layout, kind, device);
      own(parent);
      return own(view);
    };
    const [qView, kView, vView, dOutView] = views;
    this.#run = run;
    try {
      this.#inputs = {
        q: input(p.query, 'query', qView),
        k: input(p.key, 'key', kView),
        v: input(p.value, 'value', vView),
        ...(!forwardOnly && { dOut: input(dOut, 'out', dOutView) }),
      };
      const options = optionsOf(p, extrasDType({ ...run, dtype }), own, device);
      this.#options = {
        ...options,
        ...(run.mask && { mask: run.mask }),
        ...(run.deterministic !== undefined && { deterministic: run.deterministic }),
      };
      this.#extras = dLse ? { dLse: own(make(dLse, lseShape(p), 'float32', device) as Tensor<'float32'>) } : {};
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Outputs and gradients under the names of the oracle; they belong to the caller. */
  compute(): Record<string, Tensor> {
    const { q, k, v, dOut } = this.#inputs;
    const { out, lse } = attention(q, k, v, this.#options);
    if (!dOut || this.#run.forwardOnly) return { out, lse };
    try {
      const gradients = attentionBackward(dOut, { q, k, v, out, lse }, { ...this.#options, ...this.#extras });
      const { dq, dk, dv, dBias, dRelativeBias, dSink } = gradients;
      return {
        out,
        lse,
        dQuery: dq,
        dKey: dk,
        dValue: dv,
        ...(dBias && { dBias }),
        ...(dRelativeBias && { dRelativeBias }),
        ...(dSink && { dSink }),
      };
    } catch (error) {
      out.dispose();
      lse.dispose();
      throw error;
    }
  }

  /** What `read` makes of each result of one run. */
  results<T>(read: (result: Tensor) => T): Record<string, T> {
    const results = Object.entries(this.compute());
    try {
      return Object.fromEntries(results.map(([name, t]) => [name, read(t)]));
    } finally {
      for (const [, t] of results) t.dispose();
    }
  }

  dispose(): void {
    for (const t of this.#owned.splice(0)) t.dispose();
  }
}

/** Outputs and gradients under the names of the oracle. */
export function runLibrary(instance: Instance, run: RunOptions = {}): Named {
  const problem = new LibraryProblem(instance, run);
  try {
    return problem.results(widen);
  } finally {
    problem.dispose();
  }
}
