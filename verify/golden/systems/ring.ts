/** Attention over shards of a sequence, each pair of shards on its own, merged by their log-sum-exp. */
import { attention, attentionBackward, mergeStates, mergeStatesBackward, type Tensor } from 'flashattn';
import type { Adapter, ComputedTensor, Outcome, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';

interface Shard {
  readonly q: Tensor<'float32'>;
  readonly k: Tensor<'float32'>;
  readonly v: Tensor<'float32'>;
  readonly dOut: Tensor<'float32'>;
}

/** A result that is put together from blocks along one axis. */
class Assembly {
  readonly values: Float64Array;

  constructor(readonly shape: readonly number[]) {
    this.values = new Float64Array(shape.reduce((a, b) => a * b, 1));
  }

  /** Adds a block at position `begin` of `axis`; the block has the assembly's size in all other axes. */
  async add(block: Tensor, axis: number, begin: number): Promise<void> {
    const values = await block.toFloat32();
    const inner = this.shape.slice(axis + 1).reduce((a, b) => a * b, 1);
    const length = block.shape[axis] ?? 0;
    const full = this.shape[axis] ?? 0;
    values.forEach((value, n) => {
      const outer = Math.floor(n / (length * inner));
      const at = (outer * full + begin) * inner + (n % (length * inner));
      this.values[at] = (this.values[at] ?? 0) + value;
    });
  }

  fill(value: number): this {
    this.values.fill(value);
    return this;
  }
}

function readShards(file: GoldenFile, workspace: Workspace, count: number): Shard[] {
  const [q, k, v, dOut] = (['q', 'k', 'v', 'dout'] as const).map((name) => workspace.load(file, name));
  if (!q || !k || !v || !dOut) throw new GoldenError('incomplete inputs');
  const size = (q.shape[2] ?? 0) / count;
  if (!Number.isInteger(size)) throw new GoldenError(`${q.shape[2]} tokens do not divide into ${count} shards`);
  return Array.from({ length: count }, (_, s) => {
    const part = (t: Tensor<'float32'>): Tensor<'float32'> => workspace.keep(t.slice(2, s * size, (s + 1) * size));
    return { q: part(q), k: part(k), v: part(v), dOut: part(dOut) };
  });
}

async function solveRing(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const count = file.params.number('W');
  if (!count) throw new GoldenError('parameter W is missing');
  const causal = file.params.boolean('causal') ?? false;
  const layout = 'bhsd';
  const shards = readShards(file, workspace, count);
  const { shape } = file.tensor('q');
  const [batch = 0, heads = 0, length = 0, dim = 0] = shape;
  const size = length / count;

  const out = new Assembly(shape);
  const lse = new Assembly([batch, heads, length]);
  const [dq, dk, dv] = [new Assembly(shape), new Assembly(shape), new Assembly(shape)];
  // One row of blocks a query shard; a pair that nothing attends to stays (0, -Infinity).
  const partOut = new Assembly([count * count, batch, heads, size, dim]);
  const partLse = new Assembly([count * count, batch, heads, size]).fill(-Infinity);

  for (const [r, query] of shards.entries()) {
    // The order in which the shards of keys arrive at rank r.
    const sources = Array.from({ length: causal ? r + 1 : count }, (_, step) => (r - step + count) % count);
    const states: { out: Tensor<'float32'>; lse: Tensor<'float32'> }[] = [];
    for (const s of sources) {
      const { k, v } = shards[s] as Shard;
      const state = attention(query.q, k, v, { layout, causal: causal && s === r });
      states.push({ out: workspace.keep(state.out), lse: workspace.keep(state.lse) });
      partOut.values.set(await state.out.toFloat32(), (r * count + s) * state.out.size);
      partLse.values.set(await state.lse.toFloat32(), (r * count + s) * state.lse.size);
    }
    const merged = mergeStates(states, { layout });
    await out.add(workspace.keep(merged.out), 2, r * size);
    await lse.add(workspace.keep(merged.lse), 2, r * size);

    const gradients = mergeStatesBackward(query.dOut, { states, ...merged }, { layout });
    for (const [step, s] of sources.entries()) {
      const { k, v } = shards[s] as Shard;
      const [state, gradient] = [states[step], gradients[step]];
      if (!state || !gradient) throw new GoldenError('a state without gradient');
      workspace.keep(gradient.dOut);
      const backward = attentionBackward(
        gradient.dOut,
        { q: query.q, k, v, ...state },
        { layout, causal: causal && s === r, dLse: workspace.keep(gradient.dLse) },
      );
      await dq.add(workspace.keep(backward.dq), 2, r * size);
      await dk.add(workspace.keep(backward.dk), 2, s * size);
      await dv.add(workspace.keep(backward.dv), 2, s * size);
    }
  }
  return { tensors: { out, lse, dq, dk, dv, part_out: partOut, part_lse: partLse } };
}

/** Partial results [P, H, N, D] that are given, some of them empty. */
async function mergeGiven(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const partOut = file.tensor('part_out');
  const partLse = file.tensor('part_lse');
  const [parts = 0, ...shape] = partOut.shape;
  const lseShape = partLse.shape.slice(1);
  const part = (values: Float64Array, p: number): Float64Array => {
    const size = values.length / parts;
    return values.slice(p * size, (p + 1) * size);
  };
  const states = Array.from({ length: parts }, (_, p) => ({
    out: workspace.tensor(part(partOut.values, p), [1, ...shape]),
    lse: workspace.tensor(part(partLse.values, p), [1, ...lseShape]),
  }));
  const merged = mergeStates(states, { layout: 'bhsd' });
  const tensors: Record<string, ComputedTensor> = {
    out: { values: await workspace.keep(merged.out).toFloat32() },
    lse: { values: await workspace.keep(merged.lse).toFloat32() },
  };
  return { tensors };
}

export const ringMerge: Adapter = {
  systems: ['ring_merge'],
  compute: (file, workspace) => (file.has('q') ? solveRing(file, workspace) : mergeGiven(file, workspace)),
};
