/** Memories beyond a segment: Transformer-XL, recurrent memory tokens, and what is retrieved. */
import { add, attention, cast, concat, matmul, type Tensor } from 'flashattn';
import { recurrentMemory, retroCrossAttention, TransformerXLAttention, unlimiformerAttention } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { numberOf } from '../file.js';
import { type Inputs, solveTaped, tapedTensors } from './taped.js';

export const transformerXL: Adapter = {
  systems: ['transformer_xl'],
  async compute(file, workspace) {
    const { device } = workspace;
    const heads = numberOf(file, 'heads');
    const layer = new TransformerXLAttention({
      width: file.tensor('x').shape[2] ?? 0,
      heads,
      headDim: numberOf(file, 'd_head'),
      memory: numberOf(file, 'mem_len'),
      preNorm: file.params.boolean('pre_lnorm') ?? false,
      device,
    });
    try {
      return await solveTaped(file, workspace, (input) => {
        for (const t of layer.namedParameters().values()) t.dispose();
        layer.contentBias = input('r_w_bias');
        layer.distanceBias = input('r_r_bias');
        layer.qkv.weight = input('qkv_net__weight');
        layer.r.weight = input('r_net__weight');
        layer.out.weight = input('o_net__weight');
        layer.norm.weight = input('layer_norm__weight');
        layer.norm.bias = input('layer_norm__bias');
        // [seq, batch, width]
        const x = input('x').transpose(0, 1);
        const outs: Tensor[] = [];
        let memory: Tensor | undefined;
        let first = 0;
        for (const length of file.params.numbers('segments') ?? []) {
          const step = layer.next(x.slice(1, first, first + length).contiguous(), memory);
          first += length;
          outs.push(step.out);
          memory = step.memory;
        }
        return { out: concat(outs, 1).transpose(0, 1), final_mem: (memory as Tensor).transpose(0, 1) };
      });
    } finally {
      layer.dispose();
    }
  },
};

/** z + MHA(z), without norms. */
function baseLayer(z: Tensor, input: Inputs, heads: number, causal: boolean): Tensor {
  const [batch = 0, tokens = 0, width = 0] = z.shape;
  const of = (name: string) => matmul(z, input(name).transpose(0, 1)).reshape([batch, tokens, heads, width / heads]);
  const { out } = attention(of('Wq') as Tensor, of('Wk'), of('Wv'), { causal });
  return add(z, matmul(out.reshape([batch, tokens, width]), input('Wo').transpose(0, 1))) as Tensor;
}

export const rmt: Adapter = {
  systems: ['rmt'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => {
      const isEncoder = file.params.boolean('bidirectional') ?? false;
      const heads = numberOf(file, 'heads');
      const { out, memory } = recurrentMemory(
        input('x'),
        input('memory'),
        (z) => baseLayer(z, input, heads, !isEncoder),
        { segment: numberOf(file, 'segment'), kind: isEncoder ? 'encoder' : 'decoder' },
      );
      return { out, final_memory: memory };
    }),
};

export const unlimiformer: Adapter = {
  systems: ['unlimiformer'],
  async compute(file, workspace) {
    using mask = cast(workspace.load(file, 'mask'), 'bool');
    let chosen: Int32Array | undefined;
    const neighbours = numberOf(file, 'topk');
    const tensors = await tapedTensors(file, workspace, (input) => {
      const [q, k, v] = ['q', 'k', 'v'].map((name) => input(name).transpose(1, 2)) as [Tensor, Tensor, Tensor];
      const { out, indices } = unlimiformerAttention(q, k, v, { neighbours, mask });
      chosen = indices.dataSync();
      return { out: out.transpose(1, 2) };
    });
    // The file has them by place.
    const rows = Array.from({ length: (chosen?.length ?? 0) / neighbours }, (_, row) =>
      [...(chosen as Int32Array).subarray(row * neighbours, (row + 1) * neighbours)].sort((a, b) => a - b),
    );
    return { tensors: { ...tensors, topk_indices: { values: rows.flat(), exact: true } } };
  },
};

export const retro: Adapter = {
  systems: ['retro_cca'],
  async compute(file, workspace) {
    using mask = file.has('context_mask') ? cast(workspace.load(file, 'context_mask'), 'bool') : undefined;
    const chunk = numberOf(file, 'chunk');
    const [tokens, dim] = [numberOf(file, 'neighbour_len'), numberOf(file, 'D')];
    const tables = (rows: number, angle: (row: number, pair: number) => number) => {
      const values = Float64Array.from({ length: (rows * dim) / 2 }, (_, at) =>
        angle(Math.floor(at / (dim / 2)), at % (dim / 2)),
      );
      const table = (f: (x: number) => number) => workspace.tensor(values.map(f), [rows, dim / 2]);
      return { cos: table(Math.cos), sin: table(Math.sin) };
    };
    const given = file.has('q_pos_angles') ? file.tensor('q_pos_angles').values : undefined;
    const rope = given && {
      // The file has each angle twice, once for each half.
      queries: tables(chunk, (row, pair) => given[row * dim + pair] ?? Number.NaN),
      keys: tables(tokens, (row, pair) => row * 10_000 ** ((-2 * pair) / dim)),
    };
    return await solveTaped(file, workspace, (input) => ({
      out: retroCrossAttention(input('q'), input('k'), input('v'), {
        chunk,
        nullKey: input('null_k'),
        nullValue: input('null_v'),
        ...(mask && { mask }),
        ...(rope && { rope }),
      }),
    }));
  },
};
