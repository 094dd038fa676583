// adapter_config.json, which PEFT writes beside the weights of adapters and needs to read them.
import { readFile, stat } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { show } from '../base/errors.js';
import { replaceFile } from './atomicFile.js';
import { asFileError, fileError } from './file.js';

/** PEFT's names of the files of an adapter, in a folder of its own. */
const weightsName = 'adapter_model.safetensors';
const configName = 'adapter_config.json';

/** Where an adapter's files are. */
export interface AdapterFiles {
  readonly weights: string;
  readonly config: string;
  /** Whether both have PEFT's names, so that the one is sure to be about the other. */
  readonly isPair: boolean;
}

/** Of a folder PEFT's names; of a file itself, and the configuration beside it. */
export async function adapterFiles(path: string): Promise<AdapterFiles> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory()) return { weights: join(path, weightsName), config: join(path, configName), isPair: true };
  return { weights: path, config: join(dirname(path), configName), isPair: basename(path) === weightsName };
}

/** What of an adapter PEFT is told. */
export interface AdapterDescription {
  readonly rank: number;
  readonly alpha: number;
  readonly targets: readonly string[];
  readonly baseModel: string | undefined;
  readonly taskType: string | undefined;
}

/** @throws ERR_FILE */
export async function writeConfig(path: string, description: AdapterDescription): Promise<void> {
  const { rank, alpha, targets, baseModel, taskType } = description;
  const config = {
    base_model_name_or_path: baseModel ?? null,
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
    lora_alpha: alpha,
    lora_dropout: 0,
    peft_type: 'LORA',
    r: rank,
    target_modules: targets,
    task_type: taskType ?? null,
  };
  const bytes = new TextEncoder().encode(`${JSON.stringify(config, undefined, 2)}\n`);
  await replaceFile(path, (write) => write(bytes, 0));
}

/** The configuration in a file, or undefined where there is none. @throws ERR_FILE */
export async function readConfig(path: string): Promise<Readonly<Record<string, unknown>> | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw asFileError(path, 'cannot be read', error);
  }
  let config: unknown;
  try {
    config = JSON.parse(text);
  } catch (error) {
    throw fileError(path, 'is no JSON', error);
  }
  if (config === null || typeof config !== 'object' || Array.isArray(config)) throw fileError(path, 'is no object');
  return config as Record<string, unknown>;
}

const isEmpty = (value: unknown) =>
  value === undefined || value === null || (typeof value === 'object' && Object.keys(value).length === 0);

/**
 * Refuses a configuration of other adapters than those of this rank and alpha, and of kinds that are not computed here.
 *
 * @throws ERR_FILE
 */
export function checkConfig(
  path: string,
  config: Readonly<Record<string, unknown>>,
  { rank, alpha }: { readonly rank: number; readonly alpha: number },
): void {
  const { peft_type: type = 'LORA', r, lora_alpha: scale, bias = 'none' } = config;
  if (type !== 'LORA') throw fileError(path, `peft_type is ${show(type)}; these adapters are "LORA"`);
  if (r !== rank) throw fileError(path, `r is ${show(r)}; these adapters have rank ${rank}`);
  if (scale !== alpha) throw fileError(path, `lora_alpha is ${show(scale)}; these adapters have alpha ${alpha}`);
  if (bias !== 'none') throw fileError(path, `bias is ${show(bias)}; adapters have none here`);
  for (const name of ['use_rslora', 'use_dora', 'lora_bias'])
    if (config[name] !== undefined && config[name] !== null && config[name] !== false)
      throw fileError(path, `${name} is ${show(config[name])}; adapters of this kind are not computed here`);
  for (const name of ['rank_pattern', 'alpha_pattern', 'modules_to_save'])
    if (!isEmpty(config[name]))
      throw fileError(path, `${name} is ${show(config[name])}; all adapters have one rank and alpha here`);
}
