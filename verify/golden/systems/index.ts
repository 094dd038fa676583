import type { Adapter } from '../adapter.js';
import { adaptiveSpan } from './adaptiveSpan.js';
import { alibi, denseBias, t5Bias } from './bias.js';
import { bigBird } from './bigBird.js';
import { bpt, bptGraph } from './binaryPartition.js';
import { cbamGates, excitation } from './channels.js';
import { circularWindow } from './circular.js';
import { dynamicConvolution, lightweight } from './convolutions.js';
import { crate, crateBlocks, cratePaper, ista } from './crate.js';
import { flamingo, transnar } from './crossAttention.js';
import { deepspeed } from './deepspeed.js';
import { dense } from './dense.js';
import { axial, swin, timesformer } from './grids.js';
import { dcmhaAdapter, talkingHeads } from './heads.js';
import { hybridGated, hybridLocal, infini } from './infini.js';
import { kanEfficient, pykan } from './kan.js';
import { mla, xposPositions } from './latent.js';
import {
  based,
  cosformer,
  efficient,
  linearElu,
  performer,
  performerHyperbolic,
  randomFeatures,
} from './linearAttention.js';
import { longformer } from './longformer.js';
import { longnet } from './longnet.js';
import { longT5Global, longT5Local } from './longT5.js';
import { linformer, lowRankSvd, nystromformer, nystromPadded } from './lowRank.js';
import { retro, rmt, transformerXL, unlimiformer } from './memory.js';
import { paged } from './paged.js';
import { aft, flashQuad, forgetting, gatedUnit, kernels } from './pairs.js';
import { biBert, bitLinears, int8SmoothK, int8Symmetric, kvCache, ternary } from './quantised.js';
import { deltaRules, gatedLinear, retentions, rwkv6, ssd, torchscale } from './recurrent.js';
import { retnetModule, yoco } from './recurrentModules.js';
import { ringMerge } from './ring.js';
import { rotary } from './rope.js';
import { reformer, routing } from './routed.js';
import { diagonal, hgrn, mamba, rwkv4 } from './scans.js';
import { nsa, nsaLucidrains } from './selecting.js';
import { attentionSink } from './sink.js';
import { sparseBert, sparseBertUnstructured } from './sparseBert.js';
import { sparseTransformer } from './sparseTransformer.js';
import { sqrtn } from './sqrtn.js';
import { streamingLLM } from './streaming.js';
import { strides } from './strides.js';
import { topK } from './topK.js';
import { tree } from './tree.js';
import { tttCores, tttModule } from './ttt.js';
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
  tttCores,
  tttModule,
  infini,
  hybridGated,
  hybridLocal,
  retentions,
  torchscale,
  gatedLinear,
  rwkv6,
  ssd,
  deltaRules,
  retnetModule,
  yoco,
  linearElu,
  randomFeatures,
  performer,
  performerHyperbolic,
  efficient,
  cosformer,
  based,
  kernels,
  aft,
  forgetting,
  gatedUnit,
  flashQuad,
  hgrn,
  mamba,
  rwkv4,
  diagonal,
  linformer,
  lowRankSvd,
  nystromformer,
  nystromPadded,
  rotary,
  xposPositions,
  mla,
  transformerXL,
  rmt,
  unlimiformer,
  retro,
  excitation,
  cbamGates,
  lightweight,
  dynamicConvolution,
  crate,
  cratePaper,
  ista,
  crateBlocks,
  kanEfficient,
  pykan,
  flamingo,
  transnar,
  int8Symmetric,
  int8SmoothK,
  ternary,
  biBert,
  kvCache,
  bitLinears,
  talkingHeads,
  dcmhaAdapter,
  nsa,
  nsaLucidrains,
  reformer,
  routing,
  bpt,
  bptGraph,
  sparseBert,
  sparseBertUnstructured,
  paged,
];

/** System -> the adapter that computes it. */
export const adapters: ReadonlyMap<string, Adapter> = new Map(
  ADAPTERS.flatMap((adapter) => adapter.systems.map((system) => [system, adapter] as const)),
);
