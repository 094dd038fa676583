// Optimizers: what a step does to a parameter is one formula, run in place on the device in one pass over memory.
import { checkArray, checkInteger, checkNumber, checkObject, checkOptions, mustBe } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { compile, type Program } from '../kernels/elementwise.js';
import { type Expression, input, scalar } from '../kernels/expression.js';
import { broadcast, fill, filled, launchElementwise, numberAt, writeNumbers } from '../tape/arithmetic.js';
import { beforeReplay, checkReplay, isCapturing, keepWithCapture } from '../tape/captures.js';
import { sameShape } from '../tensor/shape.js';
import { allocateTensor, checkTensor, isTensor, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { checkWritable } from '../tensor/writable.js';

/** Parameters with options of their own. */
export interface ParameterGroup<Options> {
  readonly parameters: readonly Tensor[];
  /** What differs from the optimizer's. */
  readonly options?: Partial<Options>;
}

/** Tensors and numbers that an optimizer goes on from. */
export interface OptimizerState {
  readonly step: number;
  readonly tensors: Readonly<Record<string, Tensor>>;
  /**
   * How many steps have changed a parameter, by its number, where that is not `step`: it had no gradient in the others. Plain
   * JSON, for the `extra` of a checkpoint. Absent where there are none; a state without it is one of equal counts.
   */
  readonly steps?: Readonly<Record<string, number>>;
}

/** A parameter with what its optimizer has for it. */
export interface Slot<Options> {
  readonly parameter: Tensor;
  readonly options: Options;
  /** Sums over the steps, by their names; made at the first one. */
  readonly moments: Map<string, Tensor>;
  /** How many steps have changed it. */
  steps: number;
}

/** Parameters of a captured step with the same options and count, which share the numbers of each replay. */
interface Together<Options> {
  readonly slots: Slot<Options>[];
  readonly numbers: Tensor<'float32'>;
}

/** @throws ERR_OPTION */
function checkCounts(all: readonly Together<unknown>[]): void {
  for (const { slots } of all)
    if (slots.some(({ steps }) => steps !== slots[0].steps))
      throw optionError(
        'a captured step counts parameters together that a restored state counts apart; capture the step again',
      );
}

/** Numbers of one step, or a tensor that will hold them when the step is replayed. */
export type StepNumbers = readonly number[] | Tensor<'float32'>;

/** What all optimizers have: groups, moments in memory that steps share, states. */
export abstract class Optimizer<Options extends { readonly learningRate: number }> {
  /** Multiplies the learning rate of all groups: what a schedule changes. */
  rate = 1;
  protected readonly slots: readonly Slot<Options>[];
  #step = 0;

  constructor(
    parameters: readonly (Tensor | ParameterGroup<Options>)[],
    defaults: Options,
    momentNames: readonly string[],
    check: (options: Options) => void,
  ) {
    const groups = checkArray(parameters, 'parameters', 'an array of parameters or of groups', (each, name) => {
      if (isTensor(each)) return { parameters: [each as Tensor] };
      checkOptions(each as ParameterGroup<Options>, ['parameters', 'options'], name);
      return each as ParameterGroup<Options>;
    });
    const names = Object.keys(defaults) as Extract<keyof Options, string>[];
    const seen = new Set<Tensor>();
    // One object for all that have the same: what differs from step to step is computed once for each.
    const shared = { ...defaults };
    this.slots = groups.flatMap(({ parameters: own, options = {} }: ParameterGroup<Options>, i) => {
      checkOptions<Partial<Options>>(options, names, `options of group ${i}`);
      if (!Array.isArray(own)) throw mustBe(`parameters of group ${i}`, own, 'an array of parameters');
      const all = Object.keys(options).length > 0 ? { ...defaults, ...options } : shared;
      check(all);
      return own.map((parameter, j) => {
        checkTensor(parameter, `parameter ${j} of group ${i}`);
        if (!parameter.track?.isLeaf)
          throw optionError(
            `parameter ${j} of group ${i} is none: parameter(t) makes one, module.parameters() lists them`,
          );
        checkWritable(parameter, `parameter ${j} of group ${i}`);
        if (seen.has(parameter)) throw optionError(`parameter ${j} of group ${i} comes twice`);
        seen.add(parameter);
        return { parameter, options: all, moments: new Map(), steps: 0 };
      });
    });
    this.#momentNames = momentNames;
  }

  readonly #momentNames: readonly string[];

  /** How many steps have been taken. Parameters count those that had a gradient of theirs: see `OptimizerState.steps`. */
  get stepCount(): number {
    return this.#step;
  }

  /**
   * Changes every parameter that has a gradient, which stays until `zeroGrad`. Within `capture` each replay is a step, at the
   * `rate` of that time.
   *
   * @param options.gradientScale a float32 tensor of one element that all gradients are multiplied by, as
   *   `clipGradients` gives it. Where it is NaN, parameters and moments stay as they are.
   * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED, ERR_DEVICE, ERR_OUT_OF_MEMORY
   */
  step(options: { readonly gradientScale?: Tensor | undefined } = {}): void {
    checkOptions(options, ['gradientScale']);
    const { gradientScale } = options;
    if (gradientScale !== undefined) {
      checkTensor(gradientScale, 'gradientScale');
      if (gradientScale.size !== 1 || gradientScale.shape.length > 1)
        throw shapeError(`gradientScale has shape ${show(gradientScale.shape)}; it must have one element`);
    }
    const changed = this.slots.filter(({ parameter }) => parameter.grad !== undefined);
    // All of them can be changed, or none is.
    for (const [i, { parameter }] of this.slots.entries()) parameter.operand(`parameter ${i}`, parameter.backend);
    for (const { parameter } of changed) gradientScale?.operand('gradientScale', parameter.backend);
    for (const slot of changed) this.#makeMoments(slot);
    const captured = isCapturing() ? this.#capture(changed) : undefined;
    if (!captured) this.#count(changed);
    for (const slot of changed) {
      const numbers = captured?.get(slot) ?? this.numbersOf(slot.options, slot.steps);
      this.update(slot, numbers, slot.parameter.grad as Tensor, gradientScale);
      slot.parameter.written();
    }
  }

  #count(changed: readonly Slot<Options>[]): void {
    this.#step++;
    for (const slot of changed) slot.steps++;
  }

  /** What differs from step to step, in the `steps`-th of a parameter. */
  protected abstract numbersOf(options: Options, steps: number): readonly number[];

  protected abstract update(
    slot: Slot<Options>,
    numbers: StepNumbers,
    gradient: Tensor,
    scale: Tensor | undefined,
  ): void;

  /** Where the numbers of each parameter will be. Those that have counted alike go on to do so. */
  #capture(changed: readonly Slot<Options>[]): ReadonlyMap<Slot<Options>, Tensor<'float32'>> {
    const all: Together<Options>[] = [];
    checkReplay(() => checkCounts(all));
    beforeReplay(this, 'a step of an optimizer', () => this.#advance(changed, all));
    const numbers = new Map<Slot<Options>, Tensor<'float32'>>();
    for (const slot of changed) {
      const { options, steps, parameter } = slot;
      let together = all.find(({ slots: [first] }) => first.options === options && first.steps === steps);
      if (!together) {
        const count = this.numbersOf(options, 1).length;
        // Not in the memory of the recording: what is written before a replay must outlast the launches of it.
        const make = () => allocateTensor(parameter.backend, [count], 'float32', 'hostWritten');
        together = { slots: [slot], numbers: keepWithCapture(unwatched(make)) };
        all.push(together);
      } else {
        together.slots.push(slot);
      }
      numbers.set(slot, together.numbers);
    }
    return numbers;
  }

  /** The next step is about to be replayed. Queued behind the one before it: nothing waits. */
  #advance(changed: readonly Slot<Options>[], all: readonly Together<Options>[]): void {
    this.#count(changed);
    for (const { slots, numbers } of all) {
      const [{ options, steps }] = slots;
      writeNumbers(numbers, this.numbersOf(options, steps));
    }
  }

  /** Frees all gradients: the next backward pass begins with none. */
  zeroGrad(): void {
    for (const { parameter } of this.slots) parameter.grad = undefined;
  }

  /** The moments by the number of their parameter, such as '3.mean', and the steps: no copies. */
  state(): OptimizerState {
    const tensors: Record<string, Tensor> = {};
    const others: Record<string, number> = {};
    for (const [i, { moments, steps }] of this.slots.entries()) {
      for (const [name, t] of moments) tensors[`${i}.${name}`] = t;
      if (steps !== this.#step) others[i] = steps;
    }
    const state = { step: this.#step, tensors };
    return Object.keys(others).length === 0 ? state : { ...state, steps: others };
  }

  /**
   * Goes on from a state of an optimizer of the same parameters; moments that it has not are 0. Everything is compared before
   * the first is written.
   *
   * @throws ERR_OPTION, ERR_SHAPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
   */
  restore(state: OptimizerState): void {
    checkOptions(state, ['step', 'tensors', 'steps'], 'state');
    const { tensors, steps = {} } = state;
    checkInteger(state.step, 'state.step', 0);
    checkObject(steps, 'state.steps');
    for (const [name, count] of Object.entries(steps)) {
      if (!Object.hasOwn(this.slots, name))
        throw optionError(`the state has steps of parameter ${show(name)}, which this optimizer has not`);
      checkInteger(count, `state.steps[${name}]`, 0, state.step);
    }
    checkObject(tensors, 'state.tensors');
    const known = new Set<string>();
    for (const [i, { parameter }] of this.slots.entries())
      for (const name of this.#momentNames) {
        known.add(`${i}.${name}`);
        const t = tensors[`${i}.${name}`];
        if (t === undefined) continue;
        checkTensor(t, `${i}.${name} of the state`);
        if (t.dtype !== 'float32') throw optionError(`${i}.${name} of the state is ${t.dtype}; it must be float32`);
        if (!sameShape(t.shape, parameter.shape))
          throw shapeError(
            `${i}.${name} of the state has shape ${show(t.shape)}; its parameter has ${show(parameter.shape)}`,
          );
        t.operand(`${i}.${name} of the state`, parameter.backend);
      }
    for (const name of Object.keys(tensors))
      if (!known.has(name)) throw optionError(`the state has a tensor ${show(name)}, which this optimizer has not`);
    for (const slot of this.slots) this.#makeMoments(slot);
    for (const [i, { moments }] of this.slots.entries())
      for (const [name, own] of moments) {
        const t = tensors[`${i}.${name}`];
        if (t === undefined) fill(own, 0);
        // What `prepare` gave has been read into already.
        else if (t !== own) t.copyInto(own);
      }
    this.#step = state.step;
    for (const [i, slot] of this.slots.entries()) slot.steps = steps[i] ?? state.step;
  }

  /** Makes the moments that a state is read into: what the first step would do. */
  prepare(): OptimizerState {
    for (const slot of this.slots) this.#makeMoments(slot);
    return this.state();
  }

  #makeMoments({ parameter, moments }: Slot<Options>): void {
    const { backend, shape } = parameter;
    for (const name of this.#momentNames)
      if (!moments.has(name))
        moments.set(
          name,
          unwatched(() => filled(backend, shape, 'float32', 0)),
        );
  }

  /** Frees the moments. */
  dispose(): void {
    for (const { moments } of this.slots) {
      for (const t of moments.values()) t.dispose();
      moments.clear();
    }
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** What a program of an optimizer runs on. */
interface Update {
  /** What is replaced, such as a parameter and its moments. */
  readonly targets: readonly Tensor[];
  readonly gradient: Tensor;
  /** Multiplies the gradient; where it is NaN, targets stay as they are. */
  readonly scale: Tensor | undefined;
  /** Default none. */
  readonly numbers?: StepNumbers;
  /** Numbers that are the same in every step. */
  readonly fixed: readonly number[];
}

/** A formula of targets, the gradient, the numbers of the step and fixed ones: the new targets. */
type Formula = (
  targets: readonly Expression[],
  gradient: Expression,
  numbers: readonly Expression[],
  fixed: readonly Expression[],
) => readonly Expression[];

/** @internal A formula that is run in place, in one pass over memory; numbers may be the host's or lie on the device. */
export class InPlace {
  readonly #programs = new Map<string, Program>();
  readonly #formula: Formula;
  readonly #scaled: (gradient: Expression, scale: Expression) => Expression;

  /** @param scaled what a scale does to the gradient, besides keeping the targets where it is NaN */
  constructor(formula: Formula, scaled = (gradient: Expression, scale: Expression) => gradient.mul(scale)) {
    this.#formula = formula;
    this.#scaled = scaled;
  }

  run({ targets, gradient, scale, numbers = [], fixed }: Update): void {
    const [{ backend, shape }] = targets as [Tensor];
    const onDevice = isTensor(numbers);
    const count = onDevice ? numbers.size : numbers.length;
    const program = this.#program(targets.length, scale !== undefined, onDevice, count, fixed.length);
    const outputs = targets.map((t) => t.strided('a parameter', backend));
    const inputs = [...outputs, broadcast(gradient, 'a gradient', shape, backend)];
    if (scale) inputs.push(broadcast(scale, 'gradientScale', shape, backend));
    if (onDevice) for (let i = 0; i < count; i++) inputs.push(numberAt(numbers as Tensor<'float32'>, i, shape));
    const scalars = onDevice ? fixed : [...fixed, ...(numbers as readonly number[])];
    launchElementwise(backend, { program, inputs, outputs, scalars });
  }

  #program(targets: number, isScaled: boolean, onDevice: boolean, numbers: number, fixed: number): Program {
    const key = `${isScaled} ${onDevice}`;
    let known = this.#programs.get(key);
    if (!known) {
      const first = targets + (isScaled ? 2 : 1);
      const [gradient, scale] = [input(targets), input(targets + 1)];
      const all = (count: number, make: (i: number) => Expression) => Array.from({ length: count }, (_, i) => make(i));
      const results = this.#formula(
        all(targets, input),
        isScaled ? this.#scaled(gradient, scale) : gradient,
        all(numbers, (i) => (onDevice ? input(first + i) : scalar(fixed + i))),
        all(fixed, scalar),
      );
      const kept = (next: Expression, i: number) => scale.equal(scale).where(next, input(i));
      known = compile(isScaled ? results.map(kept) : results, onDevice ? first + numbers : first);
      this.#programs.set(key, known);
    }
    return known;
  }
}

function checkRate(options: { readonly learningRate: number; readonly weightDecay?: number }): void {
  checkNumber(options.learningRate, 'learningRate', 0);
  checkNumber(options.weightDecay ?? 0, 'weightDecay', 0);
}

export interface AdamWOptions {
  /** Default 1e-3. */
  readonly learningRate: number;
  /** How much of the running means of gradients and their squares a step keeps. Default [0.9, 0.999]. */
  readonly betas: readonly [number, number];
  /** Added to the root of the mean square. Default 1e-8. */
  readonly epsilon: number;
  /** How much of the parameter is taken off, times the learning rate. Default 0.01. */
  readonly weightDecay: number;
}

type Four = readonly [Expression, Expression, Expression, Expression];
type Five = readonly [...Four, Expression];

const adamW = new InPlace((targets, gradient, numbers, fixed) => {
  const [p, m, v] = targets as readonly [Expression, Expression, Expression];
  const [rate, correction1, correction2, kept] = numbers as Four;
  const [beta1, rest1, beta2, rest2, epsilon] = fixed as Five;
  const mean = m.mul(beta1).add(gradient.mul(rest1));
  const square = v.mul(beta2).add(gradient.square().mul(rest2));
  const step = mean.mul(correction1).div(square.mul(correction2).sqrt().add(epsilon));
  return [p.mul(kept).sub(step.mul(rate)), mean, square];
});

/** Adam with decoupled weight decay. Kingma and Ba (2014); Loshchilov and Hutter (2017). */
export class AdamW extends Optimizer<AdamWOptions> {
  constructor(parameters: readonly (Tensor | ParameterGroup<AdamWOptions>)[], options: Partial<AdamWOptions> = {}) {
    checkOptions(options, ['learningRate', 'betas', 'epsilon', 'weightDecay']);
    const defaults = { learningRate: 1e-3, betas: [0.9, 0.999], epsilon: 1e-8, weightDecay: 0.01, ...options } as const;
    super(parameters, defaults, ['mean', 'meanSquare'], (all) => {
      checkRate(all);
      checkNumber(all.betas[0], 'betas[0]', 0, 1);
      checkNumber(all.betas[1], 'betas[1]', 0, 1);
      checkNumber(all.epsilon, 'epsilon', 0);
    });
  }

  protected override numbersOf(
    { learningRate, betas: [beta1, beta2], weightDecay }: AdamWOptions,
    steps: number,
  ): readonly number[] {
    const rate = learningRate * this.rate;
    const corrections = [1 / (1 - beta1 ** steps), 1 / (1 - beta2 ** steps)];
    return [rate, ...corrections, 1 - rate * weightDecay];
  }

  protected override update(
    { parameter, options, moments }: Slot<AdamWOptions>,
    numbers: StepNumbers,
    gradient: Tensor,
    scale: Tensor | undefined,
  ): void {
    const { betas, epsilon } = options;
    const [beta1, beta2] = betas;
    const targets = [parameter, moments.get('mean') as Tensor, moments.get('meanSquare') as Tensor];
    adamW.run({ targets, gradient, scale, numbers, fixed: [beta1, 1 - beta1, beta2, 1 - beta2, epsilon] });
  }
}

export interface SGDOptions {
  /** Default 1e-2. */
  readonly learningRate: number;
  /** How much of the running sum of gradients a step keeps. Default 0. */
  readonly momentum: number;
  /** Whether a step looks ahead along the sum (Nesterov). Default false. */
  readonly nesterov: boolean;
  /** Added to the gradient, times the parameter. Default 0. */
  readonly weightDecay: number;
}

const sgd = [false, true].map(
  (nesterov) =>
    new InPlace((targets, loss, numbers, fixed) => {
      const [p, sum] = targets as readonly [Expression, Expression];
      const [rate] = numbers as readonly [Expression];
      const [momentum, decay] = fixed as readonly [Expression, Expression];
      const gradient = loss.add(p.mul(decay));
      const next = sum.mul(momentum).add(gradient);
      const step = nesterov ? gradient.add(next.mul(momentum)) : next;
      return [p.sub(step.mul(rate)), next];
    }),
) as readonly InPlace[];

/** Stochastic gradient descent with momentum, as PyTorch's. */
export class SGD extends Optimizer<SGDOptions> {
  constructor(parameters: readonly (Tensor | ParameterGroup<SGDOptions>)[], options: Partial<SGDOptions> = {}) {
    checkOptions(options, ['learningRate', 'momentum', 'nesterov', 'weightDecay']);
    const defaults = { learningRate: 1e-2, momentum: 0, nesterov: false, weightDecay: 0, ...options };
    super(parameters, defaults, ['momentum'], (all) => {
      checkRate(all);
      checkNumber(all.momentum, 'momentum', 0, 1);
    });
  }

  protected override numbersOf({ learningRate }: SGDOptions): readonly number[] {
    return [learningRate * this.rate];
  }

  protected override update(
    { parameter, options, moments }: Slot<SGDOptions>,
    numbers: StepNumbers,
    gradient: Tensor,
    scale: Tensor | undefined,
  ): void {
    const { momentum, weightDecay, nesterov } = options;
    const targets = [parameter, moments.get('momentum') as Tensor];
    (sgd[nesterov ? 1 : 0] as InPlace).run({ targets, gradient, scale, numbers, fixed: [momentum, weightDecay] });
  }
}
