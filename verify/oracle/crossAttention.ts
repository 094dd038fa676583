/** Gated cross-attention in float64, token by token. */
import { activations } from './activation.js';
import { attend, head, layerNorm, linear, type Numbers, range, row, sigmoid } from './dense.js';

export interface CrossDims {
  readonly batch: number;
  readonly seq: number;
  readonly dim: number;
  readonly heads: number;
}

export interface FlamingoInputs extends Readonly<Record<string, Numbers>> {
  readonly x: Numbers;
  /** [batch, media, entries, media dim] */
  readonly media: Numbers;
}

export interface FlamingoCase extends CrossDims {
  readonly media: number;
  readonly entries: number;
  readonly mediaDim: number;
  /** By token. */
  readonly locations?: readonly boolean[];
  readonly onlyImmediate: boolean;
}

export function flamingo(d: FlamingoCase, w: FlamingoInputs): Float64Array {
  const count = d.media * d.entries;
  const inner = w.query.length / d.dim;
  return Float64Array.from(
    range(d.batch).flatMap((b) => {
      const projected = range(count).map((j) => linear(row(w.media, b * count + j, d.mediaDim), w.keyValue));
      let time = 0;
      return range(d.seq).flatMap((t) => {
        const x = row(w.x, b * d.seq + t, d.dim);
        if (d.locations?.[b * d.seq + t]) time++;
        const own = time;
        const sees = (j: number) => {
          const medium = Math.floor(j / d.entries) + 1;
          return !d.locations || (d.onlyImmediate ? medium === own : medium <= own);
        };
        const q = linear(layerNorm(x, w.normWeight, w.normBias), w.query);
        const merged = range(d.heads).flatMap((h) =>
          attend(
            head(q, h, d.heads),
            projected.map((kv) => head(kv.slice(0, inner), h, d.heads)),
            projected.map((kv) => head(kv.slice(inner), h, d.heads)),
            1 / Math.sqrt(inner / d.heads),
            sees,
          ),
        );
        const update = linear(merged, w.out);
        const attended = x.map((value, i) => value + Math.tanh(w.attentionGate[0]) * update[i]);
        const hidden = linear(layerNorm(attended, w.feedForwardNormWeight, w.feedForwardNormBias), w.up);
        const fed = linear(hidden.map(activations.gelu), w.down);
        return attended.map((value, i) => value + Math.tanh(w.feedForwardGate[0]) * fed[i]);
      });
    }),
  );
}

export interface TransnarCase extends CrossDims {
  readonly nodes: number;
  readonly nodeDim: number;
  /** By node. */
  readonly mask?: readonly boolean[];
  readonly gating: 'sigmoid' | 'tanh';
}

export function transnar(d: TransnarCase, w: Readonly<Record<string, Numbers>>): Float64Array {
  const gate = d.gating === 'tanh' ? Math.tanh(w.gate[0]) : sigmoid(w.gate[0]);
  return Float64Array.from(
    range(d.batch).flatMap((b) => {
      const nodes = range(d.nodes).map((j) => row(w.nodes, b * d.nodes + j, d.nodeDim));
      const keys = nodes.map((node) => linear(node, w.key, w.keyBias));
      const values = nodes.map((node) => linear(node, w.value, w.valueBias));
      return range(d.seq).flatMap((t) => {
        const text = row(w.text, b * d.seq + t, d.dim);
        const q = linear(text, w.query, w.queryBias);
        const merged = range(d.heads).flatMap((h) =>
          attend(
            head(q, h, d.heads),
            keys.map((key) => head(key, h, d.heads)),
            values.map((value) => head(value, h, d.heads)),
            1 / Math.sqrt(d.dim / d.heads),
            (j) => d.mask?.[b * d.nodes + j] ?? true,
          ),
        );
        const update = linear(merged, w.out, w.outBias);
        return text.map((value, i) => value + gate * update[i]);
      });
    }),
  );
}
