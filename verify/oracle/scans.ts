/** Recurrences along a sequence in float64, as loops over positions; gradients by keeping every state. */

export interface ScanShape {
  readonly batch: number;
  readonly length: number;
  readonly channels: number;
}

type Numbers = ArrayLike<number>;
const at = (values: Numbers, i: number): number => values[i] as number;
const add = (values: Float64Array, i: number, x: number): void => {
  values[i] = at(values, i) + x;
};
const copyOf = (values: Numbers | undefined, size: number): Float64Array =>
  values ? Float64Array.from(values) : new Float64Array(size);

export interface Scanned {
  readonly out: Float64Array;
  readonly state: Float64Array;
}

/** h = e^gate h + x */
export interface LinearScanProblem extends ScanShape {
  /** [batch, length, channels] */
  readonly x: Numbers;
  readonly gate: Numbers;
  /** [batch, channels] */
  readonly initial?: Numbers | undefined;
}

export function linearScan({ batch, length, channels, x, gate, initial }: LinearScanProblem): Scanned {
  const out = new Float64Array(batch * length * channels);
  const state = copyOf(initial, batch * channels);
  for (let b = 0; b < batch; b++)
    for (let t = 0; t < length; t++)
      for (let c = 0; c < channels; c++) {
        const i = (b * length + t) * channels + c;
        const h = Math.exp(at(gate, i)) * at(state, b * channels + c) + at(x, i);
        state[b * channels + c] = h;
        out[i] = h;
      }
  return { out, state };
}

export function linearScanBackward(problem: LinearScanProblem, dOut: Numbers, dState?: Numbers | undefined) {
  const { batch, length, channels, gate, initial } = problem;
  const { out } = linearScan(problem);
  const [dX, dGate] = [new Float64Array(out.length), new Float64Array(out.length)];
  const dInitial = copyOf(dState, batch * channels);
  for (let b = 0; b < batch; b++)
    for (let t = length - 1; t >= 0; t--)
      for (let c = 0; c < channels; c++) {
        const i = (b * length + t) * channels + c;
        const s = b * channels + c;
        const before = t > 0 ? at(out, i - channels) : initial ? at(initial, s) : 0;
        const d = at(dInitial, s) + at(dOut, i);
        dX[i] = d;
        dGate[i] = d * Math.exp(at(gate, i)) * before;
        dInitial[s] = d * Math.exp(at(gate, i));
      }
  return { dX, dGate, dInitial };
}

export interface SelectiveScanProblem extends ScanShape {
  readonly groups: number;
  readonly size: number;
  readonly softplus: boolean;
  /** [batch, length, channels] */
  readonly u: Numbers;
  readonly dt: Numbers;
  readonly z?: Numbers | undefined;
  /** [channels, size] */
  readonly a: Numbers;
  /** [batch, length, groups, size] */
  readonly b: Numbers;
  readonly c: Numbers;
  /** [channels] */
  readonly skip?: Numbers | undefined;
  readonly dtBias?: Numbers | undefined;
  /** [batch, channels, size] */
  readonly initial?: Numbers | undefined;
}

/** One position of one channel: where its numbers lie, and those that follow from them. */
function selectivePlaces(p: SelectiveScanProblem, batch: number, t: number, channel: number) {
  const i = (batch * p.length + t) * p.channels + channel;
  const group = Math.floor(channel / (p.channels / p.groups));
  const x = at(p.dt, i) + (p.dtBias ? at(p.dtBias, channel) : 0);
  const step = p.softplus ? Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))) : x;
  const z = p.z ? at(p.z, i) : 0;
  const sigmoid = 1 / (1 + Math.exp(-z));
  return {
    ...{ i, step, z, sigmoid, u: at(p.u, i), row: ((batch * p.length + t) * p.groups + group) * p.size },
    slope: p.softplus ? 1 / (1 + Math.exp(-x)) : 1,
    gate: p.z ? z * sigmoid : 1,
    skip: p.skip ? at(p.skip, channel) : 0,
    factors: channel * p.size,
    state: (batch * p.channels + channel) * p.size,
  };
}

/** Also the states after every position, [batch, length, channels, size], and what the gate multiplies. */
function walkSelective(p: SelectiveScanProblem) {
  const count = p.batch * p.length * p.channels;
  const [out, ungated, states] = [new Float64Array(count), new Float64Array(count), new Float64Array(count * p.size)];
  const state = copyOf(p.initial, p.batch * p.channels * p.size);
  for (let b = 0; b < p.batch; b++)
    for (let t = 0; t < p.length; t++)
      for (let channel = 0; channel < p.channels; channel++) {
        const s = selectivePlaces(p, b, t, channel);
        let y = s.skip * s.u;
        for (let n = 0; n < p.size; n++) {
          const h =
            Math.exp(s.step * at(p.a, s.factors + n)) * at(state, s.state + n) + s.step * at(p.b, s.row + n) * s.u;
          state[s.state + n] = h;
          states[s.i * p.size + n] = h;
          y += at(p.c, s.row + n) * h;
        }
        ungated[s.i] = y;
        out[s.i] = y * s.gate;
      }
  return { out, ungated, states, state };
}

export function selectiveScan(problem: SelectiveScanProblem): Scanned {
  const { out, state } = walkSelective(problem);
  return { out, state };
}

export function selectiveScanBackward(p: SelectiveScanProblem, dOut: Numbers, dState?: Numbers | undefined) {
  const { out, ungated, states } = walkSelective(p);
  const like = (values: Numbers) => new Float64Array(values.length);
  const [dU, dDt, dZ, dA, dB, dC] = [like(out), like(out), like(out), like(p.a), like(p.b), like(p.c)];
  const [dSkip, dDtBias] = [new Float64Array(p.channels), new Float64Array(p.channels)];
  const dInitial = copyOf(dState, p.batch * p.channels * p.size);
  for (let b = 0; b < p.batch; b++)
    for (let t = p.length - 1; t >= 0; t--)
      for (let channel = 0; channel < p.channels; channel++) {
        const s = selectivePlaces(p, b, t, channel);
        const d = at(dOut, s.i) * s.gate;
        dZ[s.i] = at(dOut, s.i) * at(ungated, s.i) * s.sigmoid * (1 + s.z * (1 - s.sigmoid));
        add(dU, s.i, d * s.skip);
        add(dSkip, channel, d * s.u);
        let dStep = 0;
        for (let n = 0; n < p.size; n++) {
          const before =
            t > 0 ? at(states, (s.i - p.channels) * p.size + n) : p.initial ? at(p.initial, s.state + n) : 0;
          const a = at(p.a, s.factors + n);
          const decay = Math.exp(s.step * a);
          const g = at(dInitial, s.state + n) + d * at(p.c, s.row + n);
          add(dC, s.row + n, d * at(states, s.i * p.size + n));
          add(dB, s.row + n, g * s.step * s.u);
          add(dU, s.i, g * s.step * at(p.b, s.row + n));
          dStep += g * (at(p.b, s.row + n) * s.u + decay * before * a);
          add(dA, s.factors + n, g * decay * before * s.step);
          dInitial[s.state + n] = g * decay;
        }
        dDt[s.i] = dStep * s.slope;
        add(dDtBias, channel, dStep * s.slope);
      }
  return { dU, dDt, dZ, dA, dB, dC, dSkip, dDtBias, dInitial };
}

export interface DiagonalScanProblem extends ScanShape {
  readonly size: number;
  /** [batch, length, channels] */
  readonly u: Numbers;
  /** [channels, size, 2] */
  readonly a: Numbers;
  readonly w: Numbers;
  /** [batch, channels, size, 2] */
  readonly initial?: Numbers | undefined;
}

function walkDiagonal(p: DiagonalScanProblem) {
  const out = new Float64Array(p.batch * p.length * p.channels);
  const states = new Float64Array(out.length * p.size * 2);
  const state = copyOf(p.initial, p.batch * p.channels * p.size * 2);
  for (let b = 0; b < p.batch; b++)
    for (let t = 0; t < p.length; t++)
      for (let c = 0; c < p.channels; c++) {
        const i = (b * p.length + t) * p.channels + c;
        for (let n = 0; n < p.size; n++) {
          const [h, f] = [((b * p.channels + c) * p.size + n) * 2, (c * p.size + n) * 2];
          const [re, im, aRe, aIm] = [at(state, h), at(state, h + 1), at(p.a, f), at(p.a, f + 1)];
          state[h] = aRe * re - aIm * im + at(p.u, i);
          state[h + 1] = aRe * im + aIm * re;
          states[(i * p.size + n) * 2] = at(state, h);
          states[(i * p.size + n) * 2 + 1] = at(state, h + 1);
          add(out, i, at(p.w, f) * at(state, h) - at(p.w, f + 1) * at(state, h + 1));
        }
      }
  return { out, states, state };
}

export function diagonalScan(problem: DiagonalScanProblem): Scanned {
  const { out, state } = walkDiagonal(problem);
  return { out, state };
}

export function diagonalScanBackward(p: DiagonalScanProblem, dOut: Numbers, dState?: Numbers | undefined) {
  const { out, states } = walkDiagonal(p);
  const [dU, dA, dW] = [new Float64Array(out.length), new Float64Array(p.a.length), new Float64Array(p.w.length)];
  const dInitial = copyOf(dState, p.batch * p.channels * p.size * 2);
  for (let b = 0; b < p.batch; b++)
    for (let t = p.length - 1; t >= 0; t--)
      for (let c = 0; c < p.channels; c++) {
        const i = (b * p.length + t) * p.channels + c;
        const d = at(dOut, i);
        for (let n = 0; n < p.size; n++) {
          const [h, f] = [((b * p.channels + c) * p.size + n) * 2, (c * p.size + n) * 2];
          const earlier = ((i - p.channels) * p.size + n) * 2;
          const before = (part: number) =>
            t > 0 ? at(states, earlier + part) : p.initial ? at(p.initial, h + part) : 0;
          const [re, im, aRe, aIm] = [before(0), before(1), at(p.a, f), at(p.a, f + 1)];
          const gRe = at(dInitial, h) + d * at(p.w, f);
          const gIm = at(dInitial, h + 1) - d * at(p.w, f + 1);
          add(dW, f, d * at(states, (i * p.size + n) * 2));
          add(dW, f + 1, -d * at(states, (i * p.size + n) * 2 + 1));
          add(dA, f, gRe * re + gIm * im);
          add(dA, f + 1, gIm * re - gRe * im);
          add(dU, i, gRe);
          dInitial[h] = aRe * gRe + aIm * gIm;
          dInitial[h + 1] = aRe * gIm - aIm * gRe;
        }
      }
  return { dU, dA, dW, dInitial };
}

export interface WkvProblem extends ScanShape {
  /** [batch, length, channels] */
  readonly k: Numbers;
  readonly v: Numbers;
  /** [channels] */
  readonly decay: Numbers;
  readonly bonus: Numbers;
  /** [batch, 3, channels]: both sums divided by e^peak, and peak. */
  readonly initial?: Numbers | undefined;
}

/** By its definition, with exponents less their maximum: no recurrence but that of the state at the end. */
export function wkv({ batch, length, channels, k, v, decay, bonus, initial }: WkvProblem): Scanned {
  const out = new Float64Array(batch * length * channels);
  const state = new Float64Array(batch * 3 * channels);
  for (let b = 0; b < batch; b++)
    for (let c = 0; c < channels; c++) {
      const w = at(decay, c);
      const s = (part: number) => (b * 3 + part) * channels + c;
      const at0 = (part: number) => (initial ? at(initial, s(part)) : 0);
      const key = (t: number) => at(k, (b * length + t) * channels + c);
      const value = (t: number) => at(v, (b * length + t) * channels + c);
      /** Both sums over positions before t and the state, weighted by e^(exponent - most), and `own`, an exponent of t. */
      const sums = (t: number, most: number, own?: number) => {
        let [num, den] = [0, 0];
        if (initial) {
          const e = Math.exp(at0(2) + t * w - most);
          [num, den] = [e * at0(0), e * at0(1)];
        }
        for (let j = 0; j < t; j++) {
          const e = Math.exp((t - 1 - j) * w + key(j) - most);
          num += e * value(j);
          den += e;
        }
        if (own !== undefined) {
          num += Math.exp(own - most) * value(t);
          den += Math.exp(own - most);
        }
        return [num, den] as const;
      };
      const peak = (t: number) => {
        let most = initial ? at0(2) + t * w : -1e38;
        for (let j = 0; j < t; j++) most = Math.max(most, (t - 1 - j) * w + key(j));
        return most;
      };
      for (let t = 0; t < length; t++) {
        const own = at(bonus, c) + key(t);
        const [num, den] = sums(t, Math.max(peak(t), own), own);
        out[(b * length + t) * channels + c] = num / den;
      }
      const [num, den] = sums(length, peak(length));
      state[s(0)] = num;
      state[s(1)] = den;
      state[s(2)] = peak(length);
    }
  return { out, state };
}
