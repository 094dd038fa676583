// Sums of products by the names of axes: equations are cut into products of two tensors, each a matmul.
import { checkString } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { elementCount } from '../tensor/shape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying, type ViewStep } from '../tensor/track.js';
import { mul } from './elementwise.js';
import { matmul } from './matmul.js';
import { sum } from './reduce.js';

/** A letter, or '...1' for the axis of an ellipsis that is the first from its end. */
type Label = string;

interface Term {
  readonly labels: readonly Label[];
  /** Where labels stand for the axes of '...'. */
  readonly ellipsis: number | undefined;
}

/** A tensor by the labels of its axes, each different. */
interface Named {
  readonly tensor: Tensor;
  readonly labels: readonly Label[];
}

interface Equation {
  readonly inputs: readonly (readonly Label[])[];
  readonly output: readonly Label[];
}

const refuse = (equation: string, problem: string) => optionError(`equation is ${show(equation)}; ${problem}`);

function readTerm(equation: string, text: string): Term {
  const at = text.indexOf('...');
  const letters = at < 0 ? text : text.slice(0, at) + text.slice(at + 3);
  const odd = [...letters].find((c) => !/[a-zA-Z]/.test(c));
  if (odd !== undefined)
    throw refuse(equation, `axes are letters, and at most one '...' stands for several; there is ${show(odd)}`);
  return { labels: [...letters], ellipsis: at < 0 ? undefined : at };
}

/** The axes of an ellipsis, in front of others: '...3', '...2', '...1'. */
const dots = (count: number): Label[] => Array.from({ length: count }, (_, i) => `...${count - i}`);

function withDots({ labels, ellipsis }: Term, count: number): Label[] {
  return ellipsis === undefined ? [...labels] : labels.toSpliced(ellipsis, 0, ...dots(count));
}

/** @throws ERR_OPTION, ERR_SHAPE where an input has too few or too many axes */
function readEquation(equation: string, shapes: readonly Shape[]): Equation {
  const text = equation.replaceAll(/\s/g, '');
  const [left, right, more] = text.split('->');
  if (left === undefined || more !== undefined) throw refuse(equation, "there is at most one '->'");
  const terms = left.split(',').map((part) => readTerm(equation, part));
  if (terms.length !== shapes.length)
    throw refuse(equation, `it names ${terms.length} tensors, but there are ${shapes.length}`);
  let most = 0;
  const inputs = terms.map((term, i) => {
    const count = shapes[i].length - term.labels.length;
    if (count < 0 || (count > 0 && term.ellipsis === undefined))
      throw shapeError(
        `tensors[${i}] has shape ${show(shapes[i])}; ${show(left.split(',')[i])} of the equation names ${term.labels.length} axes`,
      );
    most = Math.max(most, count);
    return withDots(term, count);
  });
  const all = inputs.flat();
  if (right === undefined) {
    const once = [...new Set(terms.flatMap(({ labels }) => labels))].filter(
      (label) => all.indexOf(label) === all.lastIndexOf(label),
    );
    return { inputs, output: [...dots(most), ...once.sort()] };
  }
  const result = readTerm(equation, right);
  if (most > 0 && result.ellipsis === undefined)
    throw refuse(equation, `'...' stands for ${most} axes, which the result must have too`);
  for (const [at, label] of result.labels.entries()) {
    if (result.labels.indexOf(label) !== at) throw refuse(equation, `the result has ${show(label)} twice`);
    if (!all.includes(label)) throw refuse(equation, `no tensor has ${show(label)}, which the result has`);
  }
  return { inputs, output: withDots(result, most) };
}

/** The size of each label; 1 broadcasts. @throws ERR_SHAPE */
function sizesOf({ inputs }: Equation, shapes: readonly Shape[]): Map<Label, number> {
  const sizes = new Map<Label, { size: number; input: number }>();
  for (const [input, labels] of inputs.entries()) {
    for (const [axis, label] of labels.entries()) {
      const size = shapes[input][axis];
      const known = sizes.get(label);
      const first = labels.indexOf(label);
      const own = shapes[input][first];
      if (own !== size)
        throw shapeError(
          `axis ${show(label)} has length ${own} and ${size} in tensors[${input}], ${show(shapes[input])}; they must be equal`,
        );
      if (known && known.size !== size && known.size !== 1 && size !== 1)
        throw shapeError(
          `axis ${show(label)} has length ${known.size} in tensors[${known.input}] and ${size} in tensors[${input}]; they must be equal or 1`,
        );
      if (!known || known.size === 1) sizes.set(label, { size, input });
    }
  }
  return new Map([...sizes].map(([label, { size }]) => [label, size]));
}

/** The elements at which axes of one label have the same index, as a view. */
function diagonal(t: Tensor, labels: readonly Label[]): Named {
  const unique = [...new Set(labels)];
  if (unique.length === labels.length) return { tensor: t, labels };
  const shape = unique.map((label) => t.shape[labels.indexOf(label)]);
  const view = (of: Tensor): Tensor => {
    const strides = unique.map((label) =>
      of.strides.reduce((total, stride, axis) => (labels[axis] === label ? total + stride : total), 0),
    );
    const step: ViewStep<Tensor> = { kind: 'part', name: 'einsum', again: view };
    return of.restrided(shape, strides, 0, step);
  };
  return { tensor: view(t), labels: unique };
}

/** Without axes of length 1 that broadcast. */
function squeezed({ tensor, labels }: Named, sizes: ReadonlyMap<Label, number>): Named {
  let t = tensor;
  const left: Label[] = [];
  for (const [axis, label] of labels.entries())
    if (tensor.shape[axis] === 1 && sizes.get(label) !== 1) t = t.select(left.length, 0);
    else left.push(label);
  return { tensor: t, labels: left };
}

const ordered = ({ tensor, labels }: Named, order: readonly Label[]): Tensor =>
  order.every((label, axis) => label === labels[axis])
    ? tensor
    : tensor.permute(order.map((label) => labels.indexOf(label)));

/** Sums over the axes that nobody else has. */
function summed({ tensor, labels }: Named, wanted: ReadonlySet<Label>): Named {
  const axes = labels.flatMap((label, axis) => (wanted.has(label) ? [] : [axis]));
  if (axes.length === 0) return { tensor, labels };
  return { tensor: sum(tensor, axes), labels: labels.filter((label) => wanted.has(label)) };
}

/** The strides of groups of axes that lie behind one another, each joined to one; undefined where some do not. */
function joinedStrides(t: Tensor, groups: readonly number[]): number[] | undefined {
  let axis = 0;
  const strides: number[] = [];
  for (const group of groups) {
    let stride = 0;
    let reach = -1;
    for (let at = axis + group - 1; at >= axis; at--) {
      if (t.shape[at] === 1) continue;
      if (reach >= 0 && t.strides[at] !== reach) return undefined;
      if (reach < 0) stride = t.strides[at];
      reach = t.shape[at] * t.strides[at];
    }
    axis += group;
    strides.push(stride);
  }
  return strides;
}

/** Neighbouring axes joined to one for each number of them, as a view where they lie behind one another. */
function joined(t: Tensor, groups: readonly number[]): Tensor {
  let axis = 0;
  const shape = groups.map((group) => elementCount(t.shape.slice(axis, (axis += group))));
  const strides = joinedStrides(t, groups);
  if (!strides) return t.contiguous().reshape(shape);
  const own = t.shape;
  return t.restrided(shape, strides, 0, {
    kind: 'whole',
    name: 'einsum',
    back: (gradient) => {
      if (gradient.isContiguous) return gradient.reshape(own);
      const copy = gradient.contiguous();
      try {
        return copy.reshape(own);
      } finally {
        copy.dispose();
      }
    },
  });
}

/** The product of two, summed over the axes that nobody else has. */
function contract(a: Named, b: Named, wanted: ReadonlySet<Label>): Named {
  const shared = a.labels.filter((label) => b.labels.includes(label));
  const batch = shared.filter((label) => wanted.has(label));
  const inner = shared.filter((label) => !wanted.has(label));
  const rows = a.labels.filter((label) => !shared.includes(label));
  const columns = b.labels.filter((label) => !shared.includes(label));
  const labels = [...batch, ...rows, ...columns];
  const sizes = new Map<Label, number>();
  for (const { tensor, labels: names } of [a, b])
    for (const [axis, label] of names.entries()) sizes.set(label, tensor.shape[axis]);
  const ones = batch.map(() => 1);
  const left = joined(ordered(a, [...batch, ...rows, ...inner]), [...ones, rows.length, inner.length]);
  const right = joined(ordered(b, [...batch, ...inner, ...columns]), [...ones, inner.length, columns.length]);
  // Nothing is summed over: a product of elements.
  const product = inner.length === 0 ? mul(left, right) : matmul(left, right);
  return { tensor: product.reshape(labels.map((label) => sizes.get(label) as number)), labels };
}

/** Multiplications of a product of two. */
function costOf(a: Named, b: Named, sizes: ReadonlyMap<Label, number>): number {
  let cost = 1;
  for (const label of new Set([...a.labels, ...b.labels])) cost *= sizes.get(label) ?? 1;
  return cost;
}

/** The two whose product has the fewest multiplications: the first ones of several. */
function cheapest(terms: readonly Named[], sizes: ReadonlyMap<Label, number>): [first: number, second: number] {
  let best: [number, number] = [0, 1];
  let least = Number.POSITIVE_INFINITY;
  for (let second = 1; second < terms.length; second++)
    for (let first = 0; first < second; first++) {
      const cost = costOf(terms[first], terms[second], sizes);
      if (cost >= least) continue;
      least = cost;
      best = [first, second];
    }
  return best;
}

function evaluate(equation: Equation, sizes: ReadonlyMap<Label, number>, tensors: readonly Tensor[]): Tensor {
  let terms = tensors.map((t, i) => squeezed(diagonal(t, equation.inputs[i]), sizes));
  const wantedBesides = (...own: readonly Named[]) =>
    new Set([...equation.output, ...terms.filter((term) => !own.includes(term)).flatMap(({ labels }) => labels)]);
  terms = terms.map((term) => summed(term, wantedBesides(term)));
  while (terms.length > 1) {
    const [first, second] = cheapest(terms, sizes);
    const [a, b] = [terms[first], terms[second]];
    const product = contract(a, b, wantedBesides(a, b));
    terms = [...terms.slice(0, first), product, ...terms.slice(first + 1).filter((term) => term !== b)];
  }
  const [{ tensor, labels }] = terms;
  const result = ordered({ tensor, labels }, equation.output);
  // Not the argument itself: whoever disposes the result would dispose that.
  return tensors.includes(result) ? result.permute(result.shape.map((_, axis) => axis)) : result;
}

/**
 * Sums of products by the names of axes, as in NumPy: `einsum('bhqd,bhkd->bhqk', q, k)` has
 * out[b, h, q, k] = the sum over d of q[b, h, q, d] * k[b, h, k, d].
 *
 * A label twice in a tensor takes the diagonal; '...' stands for axes that broadcast; without '->' the result has those of
 * '...' and then the labels that occur once, capitals first. Axes of length 1 broadcast. Tensors are multiplied two at a
 * time, those first whose product costs least, each product as a `matmul` of strided views; between two of them numbers have
 * the dtype of the tensors. Of a single tensor without sums the result is a view.
 *
 * @param equation labels are letters
 * @param tensors at least one, all of one dtype and device
 * @throws ERR_OPTION for an equation that cannot be read, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED,
 *   ERR_OUT_OF_MEMORY
 */
export function einsum<D extends FloatDType>(
  equation: string,
  ...tensors: readonly Tensor<D, Shape>[]
): Tensor<D, Shape> {
  checkString(equation, 'equation');
  for (const [i, t] of tensors.entries()) checkTensor(t, `tensors[${i}]`);
  const all = tensors as unknown as readonly Tensor[];
  const shapes = all.map(({ shape }) => shape);
  const parsed = readEquation(equation, shapes);
  const sizes = sizesOf(parsed, shapes);
  for (const [i, t] of all.entries()) {
    if (t.dtype !== all[0].dtype)
      throw new FlashAttnError(
        'ERR_DTYPE',
        `tensors[${i}] is ${t.dtype} and tensors[0] is ${all[0].dtype}; they must be the same`,
      );
    t.operand(`tensors[${i}]`, all[0].backend);
  }
  return tidying(
    () => evaluate(parsed, sizes, all),
    (t) => [t],
  ) as Tensor<D, Shape>;
}
