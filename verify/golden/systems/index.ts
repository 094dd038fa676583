import type { Adapter } from '../adapter.js';
import { adaptiveSpan } from './adaptiveSpan.js';
import { alibi, denseBias, t5Bias } from './bias.js';
import { bigBird } from './bigBird.js';
import { circularWindow } from './circular.js';
import { deepspeed } from './deepspeed.js';
import { dense } from './dense.js';
import { axial, swin, timesformer } from './grids.js';
import { longformer } from './longformer.js';
import { longnet } from './longnet.js';
import { longT5Global, longT5Local } from './longT5.js';
import { ringMerge } from './ring.js';
import { attentionSink } from './sink.js';
import { sparseTransformer } from './sparseTransformer.js';
import { sqrtn } from './sqrtn.js';
import { streamingLLM } from './streaming.js';
import { strides } from './strides.js';
import { topK } from './topK.js';
import { tree } from './tree.js';
import { varlen } from './varlen.js';

const ADAPTERS: readonly Adapter[] = [
  dense,
  varlen,
  denseBias,
  alibi,
  t5Bias,
  attentionSink,
  ringMerge,
  sqrtn,
  bigBird,
  circularWindow,
  deepspeed,
  longformer,
  sparseTransformer,
  streamingLLM,
  strides,
  tree,
  adaptiveSpan,
  axial,
  longnet,
  longT5Global,
  longT5Local,
  swin,
  timesformer,
  topK,
];

/** System -> the adapter that computes it. */
export const adapters: ReadonlyMap<string, Adapter> = new Map(
  ADAPTERS.flatMap((adapter) => adapter.systems.map((system) => [system, adapter] as const)),
);
