/** Systems whose gradients come from the tape: their inputs become parameters, and one walk back gives all gradients. */
import { add, mul, parameter, scope, sum, type Tensor, zerosLike } from 'flashattn';
import type { ComputedTensor, Outcome, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile, isGradient } from '../file.js';

/** Tensors by the names that a file has them under. */
export type NamedTensors = Readonly<Record<string, Tensor>>;

/** An input that is differentiated, by its name: a parameter in the shape of the file. */
export type Inputs = (name: string) => Tensor;

/** What stands before the name of an input in that of its gradient. */
const gradientPrefix = (file: GoldenFile): string => (file.namesCotangents ? 'grad_' : 'd');

/** Every input that the file has a gradient of. */
const differentiated = (file: GoldenFile): string[] => {
  const prefix = gradientPrefix(file);
  return file.names.flatMap((name) => (isGradient(name, file) && name !== 'dout' ? [name.slice(prefix.length)] : []));
};

/**
 * Runs a system on the inputs of a file, as float32 parameters of the shapes in the file, and walks back from the sum over
 * all outputs with a cotangent of output * cotangent: `dout` is that of `out`, `dNAME` that of NAME. Outputs have the shapes
 * of the file, or others with the same elements in the same order; those without a cotangent are only compared.
 *
 * @param inputs names of what is differentiated; default: all that the file has gradients of
 */
export async function tapedTensors(
  file: GoldenFile,
  workspace: Workspace,
  run: (input: Inputs) => NamedTensors,
  inputs: readonly string[] = differentiated(file),
): Promise<Record<string, ComputedTensor>> {
  const parameters = new Map(inputs.map((name) => [name, workspace.keep(parameter(workspace.load(file, name)))]));
  const outputs = scope(() =>
    run((name) => {
      const found = parameters.get(name);
      if (!found) throw new GoldenError(`file has no input ${name} with a gradient`);
      return found;
    }),
  );
  const terms: Tensor[] = [];
  for (const [name, output] of Object.entries(outputs)) {
    workspace.keep(output);
    const cotangent = `d${name}`;
    if (!file.has(cotangent)) continue;
    if (output.size !== file.tensor(cotangent).values.length)
      throw new GoldenError(`${name} has shape [${output.shape}], its cotangent [${file.tensor(cotangent).shape}]`);
    const weighted = workspace.keep(mul(output, workspace.load(file, cotangent, output.shape)));
    terms.push(workspace.keep(sum(weighted)));
  }
  const [first, ...others] = terms;
  if (!first) throw new GoldenError('no output has a cotangent');
  others.reduce((total, term) => workspace.keep(add(total, term)), first).backward();

  const results: Record<string, ComputedTensor> = {};
  for (const [name, output] of Object.entries(outputs)) results[name] = { values: await output.toFloat32() };
  for (const [name, leaf] of parameters) {
    const gradient = leaf.grad ?? workspace.keep(zerosLike(leaf));
    results[`${gradientPrefix(file)}${name}`] = { values: await gradient.toFloat32() };
  }
  return results;
}

/** `tapedTensors` as what an adapter gives; there are no references of 16 bits. */
export async function solveTaped(
  file: GoldenFile,
  workspace: Workspace,
  run: (input: Inputs) => NamedTensors,
  inputs?: readonly string[],
): Promise<Outcome> {
  const { dtype } = workspace;
  if (dtype !== 'float32') return { unsupported: `no ${dtype} reference for ${file.expected.join(', ')}` };
  return { tensors: await tapedTensors(file, workspace, run, inputs) };
}

/** As `tapedTensors` of a file that calls the gradient of X dX. */
export async function tapedByInput(
  file: GoldenFile,
  workspace: Workspace,
  run: (input: Inputs) => NamedTensors,
): Promise<Outcome> {
  if (workspace.dtype !== 'float32') return { unsupported: `no ${workspace.dtype} reference` };
  const inputs = file.names.flatMap((name) =>
    name !== 'dout' && name.startsWith('d') && file.has(name.slice(1)) ? [name.slice(1)] : [],
  );
  const tensors = await tapedTensors(file, workspace, run, inputs);
  const renamed = Object.entries(tensors).map(([name, computed]) => [name.replace(/^grad_/, 'd'), computed] as const);
  return { tensors: Object.fromEntries(renamed) };
}
