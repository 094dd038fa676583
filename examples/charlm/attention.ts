/** The bridge to flashattn: the model's attention layer on the best device. */
import { type DeviceName, explain, memory, type Plan, plan, type Tensor, zeros } from 'flashattn';
import type { Attention, AttentionMemory, AttentionShape } from './model.js';

type Floats = Tensor<'float32'>;

/**
 * Everything is allocated once: the input tensors, and by the plan the outputs, gradients and workspace. A step only
 * writes inputs, runs, and reads results. Queries, keys and values are views of one tensor, so that they are uploaded
 * as the model made them, without being pulled apart.
 */
export class FlashAttention implements Attention {
  readonly memory: AttentionMemory;
  readonly #width: number;
  readonly #rows: number;
  readonly #qkv: Floats;
  readonly #dOut: Floats;
  readonly #views: readonly [q: Floats, k: Floats, v: Floats];
  readonly #plan: Plan<'float32'>;

  constructor(
    readonly shape: AttentionShape,
    device: DeviceName,
  ) {
    const { batch, context, heads, headDim, slopes } = shape;
    const dims = [batch, context, heads, headDim];
    this.#rows = batch * context;
    this.#width = heads * headDim;
    this.#qkv = zeros([batch, context, 3, heads, headDim], { device });
    this.#dOut = zeros(dims, { device });
    this.#views = [this.#qkv.select(2, 0), this.#qkv.select(2, 1), this.#qkv.select(2, 2)];
    const problem = { q: dims, causal: true, alibi: slopes, device };
    const before = memory(device).bytesInUse;
    this.#plan = plan({ ...problem, backward: true });
    // The plan also allocates out, dq, dk and dv, which unfused attention has to have as well.
    const perLayer = memory(device).bytesInUse - before - 4 * this.#dOut.byteLength;
    this.memory = { perLayer, shared: explain(problem).workspaceBytes };
  }

  async forward(qkv: Float32Array, output: Float32Array): Promise<void> {
    this.#qkv.write(qkv);
    const { out } = this.#plan.run(...this.#views);
    output.set(await out.data());
  }

  async backward(dOutput: Float32Array, dQkv: Float32Array): Promise<void> {
    this.#dOut.write(dOutput);
    const { dq, dk, dv } = this.#plan.runBackward(this.#dOut);
    const parts = await Promise.all([dq.data(), dk.data(), dv.data()]);
    parts.forEach((part, i) => {
      this.#interleave(part, i, dQkv);
    });
  }

  /** [rows, width] -> its place in [rows, 3, width] */
  #interleave(part: Float32Array, index: number, dQkv: Float32Array): void {
    const width = this.#width;
    for (let r = 0; r < this.#rows; r++) {
      dQkv.set(part.subarray(r * width, (r + 1) * width), (3 * r + index) * width);
    }
  }

  dispose(): void {
    this.#plan.dispose();
    // Views keep the memory they look at alive.
    for (const t of [this.#qkv, ...this.#views, this.#dOut]) t.dispose();
  }
}
