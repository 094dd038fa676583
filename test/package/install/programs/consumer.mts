// Compiled against the installed package under several settings of moduleResolution.
import {
  type AttentionResult,
  attention,
  FlashAttnError,
  masks,
  type Shape4,
  type Status,
  status,
  Tensor,
  tensor,
} from 'flashattn';

const q: Tensor<'float32', Shape4> = tensor(new Float32Array(8), [1, 2, 1, 4]);
const half: Tensor<'bfloat16'> = tensor([1, 2], [2], { dtype: 'bfloat16' });
const { out, lse }: AttentionResult<'float32', Shape4> = attention(q, q, q, { mask: masks.causal() });
const found: Status = status();
export const threads: number | string =
  'threads' in found ? found.threads : found.device === 'none' ? 0 : found.computeCapability;

export async function run(): Promise<Float32Array> {
  const bits: Uint16Array = await half.data();
  if (bits.length !== 2 || lse.shape.length !== 3) throw new FlashAttnError('ERR_SHAPE', 'never');
  return out instanceof Tensor ? out.data() : new Float32Array();
}

// @ts-expect-error there is no such dtype
tensor([1], [1], { dtype: 'float64' });
