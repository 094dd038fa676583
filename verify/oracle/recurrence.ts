/**
 * Linear and recurrent attention in float64, a position at a time:
 *
 *   S_t = D_t S_{t-1} + k_t u_t^T,   out_t = scale S_t^T q_t,   u_t = v_t or beta_t (v_t - (D_t S_{t-1})^T k_t)
 *
 * and with a bonus out_t = scale (S_{t-1} + (bonus k_t) v_t^T)^T q_t. All arrays are [batch, seq, heads, dim] of one number
 * of heads; the normalizer is what a column of ones in v would give.
 */
export interface RecurrenceCase {
  readonly batch: number;
  readonly length: number;
  readonly heads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  readonly scale: number;
  readonly q: ArrayLike<number>;
  readonly k: ArrayLike<number>;
  readonly v: ArrayLike<number>;
  /** [batch, seq, heads, key dim], logarithms */
  readonly decay?: ArrayLike<number> | undefined;
  /** [batch, seq, heads]: the delta rule */
  readonly beta?: ArrayLike<number> | undefined;
  /** [batch, seq, heads, key dim]: write_t (S_{t-1}^T read_t)^T is added */
  readonly read?: ArrayLike<number> | undefined;
  readonly write?: ArrayLike<number> | undefined;
  /** [heads, key dim] */
  readonly bonus?: ArrayLike<number> | undefined;
  /** [batch, heads, key dim, value dim] */
  readonly initial?: ArrayLike<number> | undefined;
}

export interface RecurrenceResult {
  readonly out: Float64Array;
  readonly state: Float64Array;
}

export interface RecurrenceGradients {
  readonly dq: Float64Array;
  readonly dk: Float64Array;
  readonly dv: Float64Array;
  readonly dDecay: Float64Array;
  readonly dBeta: Float64Array;
  readonly dRead: Float64Array;
  readonly dWrite: Float64Array;
  readonly dBonus: Float64Array;
  readonly dInitial: Float64Array;
}

const at = (values: ArrayLike<number>, index: number): number => values[index] as number;

/** What one step has, for the way back. */
interface Step {
  readonly before: Float64Array; // S_{t-1}
  readonly decayed: Float64Array; // D_t S_{t-1}
  readonly after: Float64Array; // S_t
  readonly error: Float64Array; // v - decayed^T k, of the delta rule
}

function place(c: RecurrenceCase, b: number, t: number, h: number) {
  const row = (b * c.length + t) * c.heads + h;
  return { row, key: row * c.keyDim, value: row * c.valueDim };
}

function step(c: RecurrenceCase, b: number, t: number, h: number, before: Float64Array, out: Float64Array): Step {
  const { row, key, value } = place(c, b, t, h);
  const { keyDim, valueDim } = c;
  const decayed = before.map((s, n) => s * (c.decay ? Math.exp(at(c.decay, key + Math.floor(n / valueDim))) : 1));
  const error = new Float64Array(valueDim);
  const after = decayed.slice();
  for (let j = 0; j < valueDim; j++) {
    let update = at(c.v, value + j);
    if (c.beta) {
      error[j] = update;
      for (let i = 0; i < keyDim; i++) error[j] -= (decayed[i * valueDim + j] as number) * at(c.k, key + i);
      update = at(c.beta, row) * (error[j] as number);
    }
    for (let i = 0; i < keyDim; i++) after[i * valueDim + j] += at(c.k, key + i) * update;
    if (c.read && c.write) {
      let seen = 0;
      for (let i = 0; i < keyDim; i++) seen += at(c.read, key + i) * (before[i * valueDim + j] as number);
      for (let i = 0; i < keyDim; i++) after[i * valueDim + j] += at(c.write, key + i) * seen;
    }
    let sum = 0;
    for (let i = 0; i < keyDim; i++) {
      const own = at(c.k, key + i) * at(c.v, value + j);
      const seen = c.bonus
        ? (before[i * valueDim + j] as number) + at(c.bonus, h * keyDim + i) * own
        : (after[i * valueDim + j] as number);
      sum += at(c.q, key + i) * seen;
    }
    out[value + j] = c.scale * sum;
  }
  return { before, decayed, after, error };
}

function stateOf(c: RecurrenceCase, values: ArrayLike<number> | undefined, b: number, h: number): Float64Array {
  const size = c.keyDim * c.valueDim;
  const begin = (b * c.heads + h) * size;
  return Float64Array.from({ length: size }, (_, n) => (values ? at(values, begin + n) : 0));
}

export function recurrence(c: RecurrenceCase): RecurrenceResult {
  const out = new Float64Array(c.batch * c.length * c.heads * c.valueDim);
  const state = new Float64Array(c.batch * c.heads * c.keyDim * c.valueDim);
  for (let b = 0; b < c.batch; b++)
    for (let h = 0; h < c.heads; h++) {
      let now = stateOf(c, c.initial, b, h);
      for (let t = 0; t < c.length; t++) now = step(c, b, t, h, now, out).after;
      state.set(now, (b * c.heads + h) * now.length);
    }
  return { out, state };
}

/** The gradients of sum(out dOut) + sum(state dState). */
export function recurrenceBackward(
  c: RecurrenceCase,
  dOut: ArrayLike<number>,
  dState: ArrayLike<number> | undefined,
): RecurrenceGradients {
  const { batch, length, heads, keyDim, valueDim, scale } = c;
  const keys = batch * length * heads * keyDim;
  const g = {
    dq: new Float64Array(keys),
    dk: new Float64Array(keys),
    dv: new Float64Array(batch * length * heads * valueDim),
    dDecay: new Float64Array(keys),
    dBeta: new Float64Array(batch * length * heads),
    dRead: new Float64Array(keys),
    dWrite: new Float64Array(keys),
    dBonus: new Float64Array(heads * keyDim),
    dInitial: new Float64Array(batch * heads * keyDim * valueDim),
  };
  const unused = new Float64Array(batch * length * heads * valueDim);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++) {
      const steps: Step[] = [];
      let now = stateOf(c, c.initial, b, h);
      for (let t = 0; t < length; t++) {
        steps.push(step(c, b, t, h, now, unused));
        now = (steps[t] as Step).after;
      }
      let d = stateOf(c, dState, b, h); // of S_t
      for (let t = length - 1; t >= 0; t--) {
        const { before, decayed, after, error } = steps[t] as Step;
        const { row, key, value } = place(c, b, t, h);
        const dBefore = new Float64Array(keyDim * valueDim);
        for (let i = 0; i < keyDim; i++)
          for (let j = 0; j < valueDim; j++) {
            const n = i * valueDim + j;
            const q = scale * at(c.q, key + i);
            const dOutJ = at(dOut, value + j);
            if (c.bonus) {
              const u = at(c.bonus, h * keyDim + i);
              const own = at(c.k, key + i) * at(c.v, value + j);
              g.dq[key + i] += scale * dOutJ * ((before[n] as number) + u * own);
              dBefore[n] += q * dOutJ;
              g.dBonus[h * keyDim + i] += q * dOutJ * own;
              g.dk[key + i] += q * dOutJ * u * at(c.v, value + j);
              g.dv[value + j] += q * dOutJ * u * at(c.k, key + i);
            } else {
              g.dq[key + i] += scale * dOutJ * (after[n] as number);
              d[n] += q * dOutJ;
            }
          }
        if (c.read && c.write)
          for (let j = 0; j < valueDim; j++) {
            let seen = 0;
            let dSeen = 0;
            for (let i = 0; i < keyDim; i++) {
              seen += at(c.read, key + i) * (before[i * valueDim + j] as number);
              dSeen += at(c.write, key + i) * (d[i * valueDim + j] as number);
            }
            for (let i = 0; i < keyDim; i++) {
              g.dWrite[key + i] += seen * (d[i * valueDim + j] as number);
              g.dRead[key + i] += dSeen * (before[i * valueDim + j] as number);
              dBefore[i * valueDim + j] += dSeen * at(c.read, key + i);
            }
          }
        const beta = c.beta ? at(c.beta, row) : 1;
        const dDecayed = d.slice();
        for (let j = 0; j < valueDim; j++) {
          const update = c.beta ? beta * (error[j] as number) : at(c.v, value + j);
          let dUpdate = 0;
          for (let i = 0; i < keyDim; i++) {
            dUpdate += at(c.k, key + i) * (d[i * valueDim + j] as number);
            g.dk[key + i] += update * (d[i * valueDim + j] as number);
          }
          g.dv[value + j] += beta * dUpdate;
          if (!c.beta) continue;
          g.dBeta[row] += dUpdate * (error[j] as number);
          const dError = beta * dUpdate;
          for (let i = 0; i < keyDim; i++) {
            dDecayed[i * valueDim + j] -= dError * at(c.k, key + i);
            g.dk[key + i] -= dError * (decayed[i * valueDim + j] as number);
          }
        }
        for (let i = 0; i < keyDim; i++)
          for (let j = 0; j < valueDim; j++) {
            const n = i * valueDim + j;
            const factor = c.decay ? Math.exp(at(c.decay, key + i)) : 1;
            dBefore[n] += factor * (dDecayed[n] as number);
            g.dDecay[key + i] += (dDecayed[n] as number) * (decayed[n] as number);
          }
        d = dBefore;
      }
      g.dInitial.set(d, (b * heads + h) * d.length);
    }
  return g;
}
