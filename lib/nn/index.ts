/**
 * What training needs around operations: modules and models, optimizers, checkpoints, token files.
 *
 * @packageDocumentation
 */
export { type TokenBatch, TokenBatches, type TokenBatchesOptions, type TokenBatchesState } from './batches.js';
export { type Checkpoint, type Json, loadCheckpoint, type Restored, saveCheckpoint } from './checkpoint.js';
export { GPT, type GPTOptions } from './gpt.js';
export { type Gpt2Options, gpt2FromSafetensors } from './gpt2.js';
export { type Initial, type ModuleOptions, Seeds } from './initial.js';
export {
  Dropout,
  Embedding,
  LayerNorm,
  Linear,
  type LinearOptions,
  type NormLayerOptions,
  RMSNorm,
} from './layers.js';
export { type LlamaOptions, llamaFromSafetensors, llamaToSafetensors } from './llama.js';
export { addLoRA, LoRA, type LoRAOptions, type SaveLoRAOptions } from './lora.js';
export { type LossCurveOptions, type LossPoint, lossCurve } from './lossCurve.js';
export { type Metrics, MetricsWriter } from './metrics.js';
export { type Layer, Module, Sequential, type StateDict } from './module.js';
export { Muon, type MuonOptions } from './muon.js';
export {
  AdamW,
  type AdamWOptions,
  Optimizer,
  type OptimizerState,
  type ParameterGroup,
  SGD,
  type SGDOptions,
} from './optimizers.js';
export { generator } from './random.js';
export {
  openSafetensors,
  type SafetensorsEntry,
  SafetensorsFile,
  type SafetensorsOptions,
  type StoredTensor,
  writeSafetensors,
} from './safetensors.js';
export { type Clipped, clipGradients, type ScheduleOptions, schedule } from './schedule.js';
export {
  type CharacterTokenizer,
  characterTokenizer,
  type GptEncoding,
  gptTokenizer,
  type Tokenizer,
} from './tokenizer.js';
export { openTokens, TokenFile, type TokenFileOptions, type Tokens, textTokens, tokensOf } from './tokens.js';
export {
  type EvaluateOptions,
  evaluate,
  type GenerateOptions,
  generate,
  type StepReport,
  type TrainOptions,
  train,
} from './train.js';
export {
  type Activation,
  type AttentionLayerOptions,
  MLP,
  type MLPOptions,
  MultiHeadAttention,
  type MultiHeadAttentionOptions,
  type RotaryOptions,
  TransformerBlock,
  type TransformerBlockOptions,
} from './transformer.js';
