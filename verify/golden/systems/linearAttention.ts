/** Linear attention by its feature maps. */
import type { Tensor } from 'flashattn';
import {
  basedAttention,
  cosformerAttention,
  efficientAttention,
  linearAttention,
  performerAttention,
  performerHyperbolicAttention,
  randomFeatureAttention,
} from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import type { Params } from '../file.js';
import { type Inputs, type NamedTensors, solveTaped } from './taped.js';

type Attend = (q: Tensor, k: Tensor, v: Tensor, inputs: Inputs) => Tensor;

/** q, k and v lie [batch, seq, heads, dim]. */
export const inOrder =
  (attend: Attend) =>
  (inputs: Inputs): NamedTensors => ({
    out: attend(inputs('q'), inputs('k'), inputs('v'), inputs),
  });

/** q, k and v lie [batch, heads, seq, dim]. */
export const headsFirst =
  (attend: Attend) =>
  (inputs: Inputs): NamedTensors => {
    const [q, k, v] = ['q', 'k', 'v'].map((name) => inputs(name).transpose(1, 2)) as [Tensor, Tensor, Tensor];
    return { out: attend(q, k, v, inputs).transpose(1, 2) };
  };

/** Options that a file may name otherwise or not have. */
export function optionsOf<K extends string>(
  params: Params,
  names: Readonly<Record<K, string>>,
): { readonly [name in K]?: number } {
  const found: Partial<Record<K, number>> = {};
  for (const [option, name] of Object.entries(names) as [K, string][]) {
    const value = params.number(name);
    if (value !== undefined) found[option] = value;
  }
  return found;
}

const causalOf = (params: Params) => ({ causal: params.boolean('causal') ?? false });

export const linearElu: Adapter = {
  systems: ['linear_attention_elu'],
  compute(file, workspace) {
    const { params } = file;
    const lens = params.numbers('key_lengths');
    const options = {
      ...causalOf(params),
      ...optionsOf(params, { epsilon: 'eps' }),
      ...(lens && { kLens: lens }),
    };
    return solveTaped(
      file,
      workspace,
      inOrder((q, k, v) => linearAttention(q, k, v, options)),
    );
  },
};

export const randomFeatures: Adapter = {
  systems: ['linear_attention_rff_gaussian', 'linear_attention_rff_laplacian'],
  compute(file, workspace) {
    const { params } = file;
    const options = {
      ...causalOf(params),
      ...optionsOf(params, { epsilon: 'eps', softmaxTemp: 'softmax_temp', smoothing: 'smoothing' }),
    };
    const attend: Attend = (q, k, v, inputs) =>
      randomFeatureAttention(q, k, v, { ...options, omega: inputs('omega') as Tensor<'float32'> });
    return solveTaped(file, workspace, inOrder(attend));
  },
};

export const performer: Adapter = {
  systems: ['performer_favor', 'performer_generalized_relu'],
  compute(file, workspace) {
    const { params } = file;
    const kernel = file.system === 'performer_favor' ? 'softmax' : 'relu';
    const options = {
      ...causalOf(params),
      ...optionsOf(params, { kernelEpsilon: kernel === 'softmax' ? 'kernel_eps' : 'kernel_epsilon' }),
      kernel,
    } as const;
    const projection = workspace.load(file, 'proj');
    return solveTaped(
      file,
      workspace,
      headsFirst((q, k, v) => performerAttention(q, k, v, { ...options, projection })),
    );
  },
};

export const performerHyperbolic: Adapter = {
  systems: ['performer_favor_hyperbolic'],
  compute(file, workspace) {
    const { params } = file;
    const options = {
      ...optionsOf(params, { epsilon: 'eps', softmaxTemp: 'softmax_temp' }),
      stabilize: params.boolean('stabilize') ?? false,
    };
    const attend: Attend = (q, k, v, inputs) =>
      performerHyperbolicAttention(q, k, v, { ...options, omega: inputs('omega') as Tensor<'float32'> });
    return solveTaped(file, workspace, inOrder(attend));
  },
};

export const efficient: Adapter = {
  systems: ['efficient_attention'],
  compute: (file, workspace) =>
    solveTaped(
      file,
      workspace,
      headsFirst((q, k, v) => efficientAttention(q, k, v, causalOf(file.params))),
    ),
};

export const cosformer: Adapter = {
  systems: ['cosformer'],
  compute(file, workspace) {
    const { params } = file;
    const heads = params.number('heads') ?? 1;
    const options = { ...causalOf(params), ...optionsOf(params, { epsilon: 'eps' }) };
    return solveTaped(file, workspace, (inputs) => {
      // [seq, batch, heads * dim]
      const [q, k, v] = ['query', 'key', 'value'].map((name) => {
        const t = inputs(name);
        const [seq = 0, batch = 0, model = 0] = t.shape;
        return t.reshape([seq, batch, heads, model / heads]).transpose(0, 1) as Tensor;
      }) as [Tensor, Tensor, Tensor];
      return { out: cosformerAttention(q, k, v, options).transpose(0, 1) };
    });
  },
};

export const based: Adapter = {
  systems: ['based_taylor_linear_attention'],
  compute: (file, workspace) =>
    solveTaped(
      file,
      workspace,
      headsFirst((q, k, v) => basedAttention(q, k, v)),
    ),
};
