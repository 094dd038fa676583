// What operations record so that a gradient finds its way back: reverse accumulation over a graph of nodes, one for each
// operation that met a tensor which needs a gradient.
//
// A node keeps handles of its own to the tensors that its backward pass reads: whoever computed them may dispose theirs. The
// walk frees them as it goes, and so does the disposal of the last tensor that led to them. Gradients are made of operations
// too, which record nothing.

import type { DType, FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import { type Shape, sameShape } from '../tensor/shape.js';
import { type AnyTensor, checkLike, isTensor, type Tensor } from '../tensor/tensor.js';
import { type BackwardOptions, type Track, tidying, unwatched, type ViewStep } from '../tensor/track.js';
import { addInPlace, addTensors, embedded, filled, sumTo } from './arithmetic.js';

/** How many nodes and parameters there have been: each has its number. */
let nodes = 0;
let recording = true;
/** While nothing is recorded and somebody wants to know what would have been: the tensors that a gradient would flow to. */
let met: Map<Target, AnyTensor> | undefined;

export const isRecording = (): boolean => recording;

/** Where a gradient goes: to a parameter, or on through what computed the tensor. */
type Target = Parameter | Computed;

/** What parameters and results have in common. */
abstract class Recorded implements Track<AnyTensor, Tensor> {
  abstract readonly isLeaf: boolean;
  abstract grad: Tensor | undefined;
  abstract released(): void;

  recordView(source: AnyTensor, view: AnyTensor, step: ViewStep<Tensor>): void {
    recordView(source, view, step);
  }

  backward(t: AnyTensor, gradient: Tensor | undefined, options: BackwardOptions): void {
    backward(t, this as unknown as Target, gradient, options);
  }
}

/** The track of a parameter. */
class Parameter extends Recorded {
  readonly isLeaf = true;
  readonly id = nodes++;
  #grad: Tensor | undefined;

  /** Undefined too when somebody has disposed it. */
  get grad(): Tensor | undefined {
    return this.#grad?.disposed ? undefined : this.#grad;
  }

  set grad(gradient: Tensor | undefined) {
    this.#grad = gradient;
  }

  released(): void {
    this.grad?.dispose();
  }
}

/** The track of a result. */
class Computed extends Recorded {
  readonly isLeaf = false;
  readonly grad = undefined;

  constructor(
    readonly node: Node,
    /** Which of its results. */
    readonly index: number,
  ) {
    super();
  }

  released(): void {
    release([this]);
  }
}

/** What of a result its gradients are made like. */
interface Like {
  readonly shape: Shape;
  readonly dtype: DType;
  readonly backend: Backend;
}

/** A gradient that is zero but for some places. It lives no longer than those that its backward function was given. */
export interface SparseGradient {
  toDense(): Tensor;
  /** sum += it, in place; contiguous, of its shape and dtype. */
  addTo(sum: Tensor): void;
}

type Gradient = Tensor | SparseGradient;

/**
 * From the gradients of the results (undefined: it is zero) to those of the inputs; undefined where `needed` says that
 * nobody wants it, or where it is zero. Gradients may be views of one another; all of them are the recorder's.
 */
export type BackwardFunction = (
  gradients: readonly (Tensor | undefined)[],
  saved: readonly AnyTensor[],
  needed: readonly boolean[],
  /** Whether what was saved is freed afterwards: memory that nobody else has may be overwritten. */
  frees: boolean,
) => readonly (Gradient | undefined)[];

interface Kept {
  readonly tensor: AnyTensor;
  readonly version: number;
}

class Node {
  readonly id = nodes++;
  #kept: readonly Kept[] | undefined;
  /** Tensors and later nodes that lead here. */
  #users: number;
  #holdsTargets = true;

  constructor(
    readonly name: string,
    readonly targets: readonly (Target | undefined)[],
    readonly results: readonly Like[],
    kept: readonly AnyTensor[],
    readonly backward: BackwardFunction,
  ) {
    this.#kept = unwatched(() => kept.map((t) => ({ tensor: t.detach() as AnyTensor, version: t.version })));
    this.#users = results.length;
    for (const target of targets) if (target instanceof Computed) target.node.#users++;
  }

  /** Whether that was the last one who could walk here. */
  loseUser(): boolean {
    return --this.#users === 0;
  }

  /** What it leads to, once. */
  takeTargets(): readonly (Target | undefined)[] {
    if (!this.#holdsTargets) return [];
    this.#holdsTargets = false;
    return this.targets;
  }

  get isFree(): boolean {
    return this.#kept === undefined;
  }

  get needed(): boolean[] {
    return this.targets.map((target) => target !== undefined);
  }

  /** @throws ERR_AUTOGRAD when it has been freed, or when somebody wrote what it kept */
  saved(): AnyTensor[] {
    if (!this.#kept)
      throw new FlashAttnError(
        'ERR_AUTOGRAD',
        `${this.name} has freed what it kept, in an earlier backward(): pass retainGraph: true to that one`,
      );
    for (const [at, { tensor, version }] of this.#kept.entries())
      if (tensor.version !== version)
        throw new FlashAttnError(
          'ERR_AUTOGRAD',
          `${this.name} needs tensor ${at} of those that it kept, ${show(tensor.shape)} ${tensor.dtype}, as it was; it has been written since`,
        );
    return this.#kept.map(({ tensor }) => tensor);
  }

  /** Whether it holds memory. */
  get keeps(): boolean {
    return this.#kept !== undefined && this.#kept.length > 0;
  }

  free(): void {
    for (const { tensor } of this.#kept ?? []) tensor.dispose();
    this.#kept = undefined;
  }
}

/** Frees what nobody leads to any more. */
function release(targets: readonly (Target | undefined)[]): void {
  const open = [...targets];
  while (open.length > 0) {
    const target = open.pop();
    if (!(target instanceof Computed) || !target.node.loseUser()) continue;
    target.node.free();
    for (const next of target.node.takeTargets()) open.push(next);
  }
}

/** Frees nodes, whoever leads to them. */
function freeAll(all: Iterable<Node>): void {
  const freed = [...all];
  for (const node of freed) node.free();
  for (const node of freed) release(node.takeTargets());
}

/** What `f` returns; what it computes is not recorded. */
export const withoutRecording = <T>(f: () => T): T => whileRecording(false, f);

/** What `f` returns; what it computes is recorded, or not. */
export function whileRecording<T>(is: boolean, f: () => T): T {
  const before = { recording, met };
  recording = is;
  met = undefined;
  try {
    return f();
  } finally {
    ({ recording, met } = before);
  }
}

/** What `f` returns, and the tensors whose gradients would have been recorded; nothing is. */
export function withoutRecordingBut<T>(f: () => T): { readonly result: T; readonly found: readonly AnyTensor[] } {
  const found = new Map<Target, AnyTensor>();
  const result = whileRecording(false, () => {
    met = found;
    return f();
  });
  return { result, found: [...found.values()] };
}

const targetOf = (t: AnyTensor | undefined): Target | undefined => t?.track as Target | undefined;

/** Whether an operation on these has to be recorded. By index: it is asked in every call. */
export function needsRecord(inputs: readonly (AnyTensor | undefined)[]): boolean {
  if (!recording) {
    if (met) for (const t of inputs) meet(met, t);
    return false;
  }
  for (let i = 0; i < inputs.length; i++) if (inputs[i]?.track !== undefined) return true;
  return false;
}

function meet(all: Map<Target, AnyTensor>, t: AnyTensor | undefined): void {
  const target = targetOf(t);
  if (t && target && !all.has(target)) all.set(target, t);
}

/**
 * Records an operation, if one of its inputs needs a gradient.
 *
 * @param name as messages call it
 * @param saved what `backward` is given back: inputs, results, or what else it reads
 */
export function record(
  name: string,
  inputs: readonly (AnyTensor | undefined)[],
  results: readonly AnyTensor[],
  saved: readonly AnyTensor[],
  backward: BackwardFunction,
): void {
  if (!needsRecord(inputs)) return;
  const likes = results.map(({ shape, dtype, backend }) => ({ shape, dtype, backend }));
  const node = new Node(name, inputs.map(targetOf), likes, saved, backward);
  for (const [index, result] of results.entries()) result.track = new Computed(node, index);
  recorded?.add(node);
  seeRecord?.(node);
}

/** What of the graph others may know. */
export interface RecordedNode {
  readonly name: string;
}

let seeRecord: ((node: RecordedNode) => void) | undefined;

/** What `f` returns; `see` is told of everything that is recorded meanwhile. */
export function seeingRecords<T>(see: (node: RecordedNode) => void, f: () => T): T {
  const before = seeRecord;
  seeRecord = see;
  try {
    return f();
  } finally {
    seeRecord = before;
  }
}

/** Those that still keep tensors, though no gradient of `returned` needs them. */
export function keptBeside(all: readonly RecordedNode[], returned: readonly AnyTensor[]): readonly RecordedNode[] {
  const roots = returned.flatMap((t) => (t.track instanceof Computed ? [t.track.node] : []));
  const needed = new Set(reachable(roots));
  return (all as readonly Node[]).filter((node) => node.keeps && !needed.has(node));
}

/** That of a view that shows some elements. */
const partial = (gradient: Tensor, shape: Shape, again: (t: Tensor) => Tensor): SparseGradient => ({
  toDense: () => embedded(gradient, shape, again),
  addTo(sum) {
    const part = again(sum);
    try {
      addInPlace(part, gradient);
    } finally {
      part.dispose();
    }
  },
});

function recordView(source: AnyTensor, view: AnyTensor, step: ViewStep<Tensor>): void {
  const { shape } = source;
  record(step.name, [source], [view], [], ([gradient]) => {
    if (!gradient) return [undefined];
    if (step.kind === 'whole') return [step.back(gradient)];
    return [step.kind === 'part' ? partial(gradient, shape, step.again) : sumTo(gradient, shape)];
  });
}

/** Makes a tensor one that gradients are added up for. */
export function makeParameter(t: AnyTensor): void {
  t.track = new Parameter();
}

/** Nodes that have been recorded since somebody asked, and may still hold memory. */
let recorded: Set<Node> | undefined;

/** @internal Frees what was recorded within `f`, but for what the tensors that it returns depend on. */
export function freeingRecords<T>(f: () => T, returned: (result: T) => readonly AnyTensor[]): T {
  const before = recorded;
  const own = new Set<Node>();
  recorded = own;
  try {
    const result = f();
    for (const t of returned(result)) {
      const target = targetOf(t);
      if (target instanceof Computed)
        for (const node of reachable([target.node])) if (own.delete(node)) before?.add(node);
    }
    return result;
  } finally {
    recorded = before;
    freeAll(own);
  }
}

/** A node and all that it got its inputs from, as far as those are `within`. */
function reachable(roots: readonly Node[], within?: ReadonlySet<Node>): Node[] {
  const found = new Set(roots);
  const open = [...roots];
  for (let node = open.pop(); node; node = open.pop())
    for (const target of node.targets)
      if (target instanceof Computed && !found.has(target.node) && (within?.has(target.node) ?? true)) {
        found.add(target.node);
        open.push(target.node);
      }
  return [...found];
}

function checkGradient(t: AnyTensor, gradient: Tensor | undefined): Tensor {
  if (gradient === undefined) {
    if (t.size !== 1)
      throw shapeError(
        `backward() of a tensor of shape ${show(t.shape)} needs a gradient of that shape; only one of a single element has its own, 1`,
      );
    return filled(t.backend, t.shape, t.dtype as FloatDType, 1);
  }
  checkLike(gradient, 'gradient', t);
  return gradient.detach();
}

/** Gradients on their way, each a handle of its own. */
class Pending {
  readonly #byNode = new Map<Node, (Tensor | undefined)[]>();
  readonly #byParameter = new Map<Parameter, Tensor>();

  /** Takes over `gradient`. */
  add(target: Target, gradient: Gradient): void {
    if (target instanceof Parameter) {
      this.#byParameter.set(target, addUp(this.#byParameter.get(target), gradient));
      return;
    }
    const { node, index } = target;
    const all = this.#byNode.get(node) ?? new Array<Tensor | undefined>(node.results.length).fill(undefined);
    all[index] = addUp(all[index], gradient);
    this.#byNode.set(node, all);
  }

  take(node: Node): (Tensor | undefined)[] | undefined {
    const gradients = this.#byNode.get(node);
    this.#byNode.delete(node);
    return gradients;
  }

  /** What has come for a target, or undefined. */
  takeFor(target: Target): Tensor | undefined {
    if (target instanceof Parameter) {
      const gradient = this.#byParameter.get(target);
      this.#byParameter.delete(target);
      return gradient;
    }
    const all = this.#byNode.get(target.node);
    const gradient = all?.[target.index];
    if (all) all[target.index] = undefined;
    return gradient;
  }

  /** Whether there are gradients of what was there before a node or parameter of this number. */
  hasOlderThan(id: number): boolean {
    for (const parameter of this.#byParameter.keys()) if (parameter.id < id) return true;
    for (const [node, gradients] of this.#byNode) if (node.id < id && gradients.some((g) => g)) return true;
    return false;
  }

  /** Gives parameters what has come for them: only a walk that was finished changes a gradient. */
  commit(): void {
    const sums = [...this.#byParameter].map(([parameter, gradient]) => {
      const before = parameter.grad;
      // Every replay adds to the same memory.
      if (before?.backend.isRecording) {
        addInPlace(before, gradient);
        gradient.dispose();
        return { parameter, before: undefined, sum: before };
      }
      // All sums exist before the first of them is given away.
      const sum = before ? addTensors(before, gradient) : kept(gradient);
      this.#byParameter.set(parameter, sum);
      if (sum !== gradient) gradient.dispose();
      return { parameter, before, sum };
    });
    for (const { parameter, before, sum } of sums) {
      before?.dispose();
      parameter.grad = sum;
      this.#byParameter.delete(parameter);
    }
  }

  dispose(): void {
    for (const gradients of this.#byNode.values()) for (const gradient of gradients) gradient?.dispose();
    for (const gradient of this.#byParameter.values()) gradient.dispose();
  }
}

/** Whether nobody else has its memory, and elements lie row by row. */
const isOwn = (gradient: Tensor) => gradient.isContiguous && gradient.ownsStorage;

/** The sum of two gradients, which are used up: in the memory of one of them, where nobody else has it. */
function addUp(sum: Tensor | undefined, gradient: Gradient): Tensor {
  if (!isTensor(gradient)) {
    if (!sum || !isOwn(sum)) return addUp(sum, gradient.toDense());
    gradient.addTo(sum);
    return sum;
  }
  if (!sum) return gradient;
  const target = isOwn(sum) ? sum : isOwn(gradient) && gradient.dtype === sum.dtype ? gradient : undefined;
  const other = target === sum ? gradient : sum;
  try {
    if (!target) return addTensors(sum, gradient);
    addInPlace(target, other);
    return target;
  } finally {
    other.dispose();
    if (!target) gradient.dispose();
  }
}

/** A gradient that a parameter keeps: in memory of its own, row-major. The same tensor, or a copy. */
const kept = (gradient: Tensor): Tensor => (isOwn(gradient) ? gradient : gradient.contiguous());

let walking = false;

function backward(
  t: AnyTensor,
  root: Target,
  gradient: Tensor | undefined,
  { retainGraph = false }: BackwardOptions,
): void {
  if (walking)
    throw new FlashAttnError(
      'ERR_AUTOGRAD',
      'backward() within a backward pass: gradients of gradients are not recorded',
    );
  const pending = new Pending();
  walking = true;
  try {
    unwatched(() =>
      withoutRecording(() => {
        pending.add(root, checkGradient(t, gradient));
        if (root instanceof Computed) walk(reachable([root.node]), pending, retainGraph);
        pending.commit();
      }),
    );
  } finally {
    walking = false;
    pending.dispose();
  }
}

/** A second run of a function, and where its gradients are to go. */
export interface SecondRun {
  readonly results: readonly AnyTensor[];
  /** Tensors that need gradients, those of `gradientsThrough` in this order. */
  readonly ends: readonly AnyTensor[];
}

/**
 * Within a backward pass: runs a function with recording, and goes back through what it recorded.
 *
 * @param gradients of the results
 * @throws ERR_AUTOGRAD where the results have other shapes, or depend on tensors from outside that are no ends
 */
export function gradientsThrough(
  name: string,
  run: () => SecondRun,
  gradients: readonly (Tensor | undefined)[],
): (Tensor | undefined)[] {
  const before = recorded;
  const first = nodes;
  const own = new Set<Node>();
  const pending = new Pending();
  recorded = own;
  try {
    const { results, ends } = whileRecording(true, run);
    const roots: Node[] = [];
    for (const [i, gradient] of gradients.entries()) {
      const result = results[i];
      const target = targetOf(result);
      if (!gradient || !result || !target) continue;
      if (result.dtype !== gradient.dtype || !sameShape(result.shape, gradient.shape))
        throw new FlashAttnError(
          'ERR_AUTOGRAD',
          `result ${i} of ${name} is ${result.dtype} ${show(result.shape)} in its second run; it was ${gradient.dtype} ${show(gradient.shape)}`,
        );
      pending.add(target, gradient.detach());
      if (target instanceof Computed && own.has(target.node)) roots.push(target.node);
    }
    walk(reachable(roots, own), pending, false);
    const found = ends.map((t) => {
      const target = targetOf(t);
      return target && pending.takeFor(target);
    });
    if (pending.hasOlderThan(first)) {
      for (const gradient of found) gradient?.dispose();
      throw new FlashAttnError('ERR_AUTOGRAD', `${name} used other parameters in its second run than in its first`);
    }
    return found;
  } finally {
    recorded = before;
    pending.dispose();
    for (const node of own) node.free();
  }
}

/** Later nodes first: whatever a gradient of a node comes from has been recorded after it. */
function walk(nodes: Node[], pending: Pending, retainGraph: boolean): void {
  nodes.sort((a, b) => b.id - a.id);
  // All of them can be used, or none is.
  for (const node of nodes) node.saved();
  try {
    for (const node of nodes) walkNode(node, pending, retainGraph);
  } finally {
    // Not before: it would free what is still to be walked.
    freeAll(nodes.filter((node) => node.isFree));
  }
}

function walkNode(node: Node, pending: Pending, retainGraph: boolean): void {
  const gradients = pending.take(node);
  if (gradients) {
    try {
      const results = tidying(
        () => node.backward(gradients, node.saved(), node.needed, !retainGraph),
        (all) => all.filter((each): each is Tensor => each !== undefined && isTensor(each)),
      );
      for (const [i, target] of node.targets.entries()) {
        const result = results[i];
        if (result && target) pending.add(target, result);
        else if (result && isTensor(result)) result.dispose();
      }
    } finally {
      for (const each of gradients) each?.dispose();
    }
  }
  if (!retainGraph) node.free();
}
