// Arithmetic on elements as data: built once, differentiated, and run by one kernel (`elementwise`) on every device.
import { optionError, show } from '../base/errors.js';

/** What kernels can do with numbers: `Opcode` of native/structs/elementwise.h, in its order. Comparisons give 1 or 0. */
export const opcodes = [
  'add',
  'sub',
  'mul',
  'div',
  'minimum',
  'maximum',
  'pow',
  'less',
  'lessEqual',
  'equal',
  'neg',
  'abs',
  'sign',
  'sqrt',
  'rsqrt',
  'exp',
  'expm1',
  'log',
  'log1p',
  'sin',
  'cos',
  'tanh',
  'sigmoid',
  'erf',
  'normalCdf',
  'floor',
  'round',
  'where',
  'multiplyAdd',
  'uniform',
  'normal',
  'lookup',
] as const;

export type Opcode = (typeof opcodes)[number];

/**
 * `input` and `scalar` are what a call gives, by their index; `uniform` and `normal` are random numbers of the element, by
 * which of them they are.
 */
type Leaf = 'input' | 'scalar' | 'constant' | 'uniform' | 'normal';

export type Term = Expression | number;

/** An immutable formula of the elements at one place of its inputs; methods are named as the functions on tensors. */
export class Expression {
  private constructor(
    /** @internal */
    readonly op: Opcode | Leaf,
    /** @internal */
    readonly args: readonly Expression[],
    /** @internal Of a constant its number, of a leaf its index, of a lookup that of its table. */
    readonly value: number,
  ) {}

  /** @internal */
  static leaf(op: Leaf, value: number): Expression {
    return new Expression(op, [], value);
  }

  /** @internal */
  static of(op: Opcode, ...args: Term[]): Expression {
    return new Expression(op, args.map(term), 0);
  }

  /** @internal An element of a table, by its index in row-major order. */
  static lookup(table: number, index: Expression): Expression {
    return new Expression('lookup', [index], table);
  }

  add(y: Term): Expression {
    return Expression.of('add', this, y);
  }
  sub(y: Term): Expression {
    return Expression.of('sub', this, y);
  }
  mul(y: Term): Expression {
    return Expression.of('mul', this, y);
  }
  div(y: Term): Expression {
    return Expression.of('div', this, y);
  }
  pow(y: Term): Expression {
    return Expression.of('pow', this, y);
  }
  /** The smaller; NaN where either is. */
  minimum(y: Term): Expression {
    return Expression.of('minimum', this, y);
  }
  /** The larger; NaN where either is. */
  maximum(y: Term): Expression {
    return Expression.of('maximum', this, y);
  }
  less(y: Term): Expression {
    return Expression.of('less', this, y);
  }
  lessEqual(y: Term): Expression {
    return Expression.of('lessEqual', this, y);
  }
  greater(y: Term): Expression {
    return Expression.of('less', y, this);
  }
  greaterEqual(y: Term): Expression {
    return Expression.of('lessEqual', y, this);
  }
  equal(y: Term): Expression {
    return Expression.of('equal', this, y);
  }
  notEqual(y: Term): Expression {
    return Expression.of('sub', 1, this.equal(y));
  }
  neg(): Expression {
    return Expression.of('neg', this);
  }
  abs(): Expression {
    return Expression.of('abs', this);
  }
  sign(): Expression {
    return Expression.of('sign', this);
  }
  sqrt(): Expression {
    return Expression.of('sqrt', this);
  }
  rsqrt(): Expression {
    return Expression.of('rsqrt', this);
  }
  square(): Expression {
    return Expression.of('mul', this, this);
  }
  exp(): Expression {
    return Expression.of('exp', this);
  }
  expm1(): Expression {
    return Expression.of('expm1', this);
  }
  log(): Expression {
    return Expression.of('log', this);
  }
  log1p(): Expression {
    return Expression.of('log1p', this);
  }
  sin(): Expression {
    return Expression.of('sin', this);
  }
  cos(): Expression {
    return Expression.of('cos', this);
  }
  tanh(): Expression {
    return Expression.of('tanh', this);
  }
  sigmoid(): Expression {
    return Expression.of('sigmoid', this);
  }
  erf(): Expression {
    return Expression.of('erf', this);
  }
  /** The share of a standard normal distribution below it. */
  normalCdf(): Expression {
    return Expression.of('normalCdf', this);
  }
  floor(): Expression {
    return Expression.of('floor', this);
  }
  /** To the nearest whole number, ties to even. */
  round(): Expression {
    return Expression.of('round', this);
  }
  /** `yes` where it is not 0, else `no`. */
  where(yes: Term, no: Term): Expression {
    return Expression.of('where', this, yes, no);
  }
}

/** What a call gives: the element of its input, or a number. */
export const input = (index: number): Expression => Expression.leaf('input', index);
export const scalar = (index: number): Expression => Expression.leaf('scalar', index);

/** @internal */
export function term(value: Term): Expression {
  if (value instanceof Expression) return value;
  if (typeof value === 'number') return Expression.leaf('constant', value);
  throw optionError(`a term is ${show(value)}; it must be an expression or a number`);
}

type Derivative = (args: readonly Expression[], self: Expression) => readonly (Expression | undefined)[];

const zeroWhere = (condition: Expression, other: Expression) => condition.where(0, other);
const none: Derivative = (args) => args.map(() => undefined);

/** By argument what to multiply the gradient with; undefined: it has no influence. */
const derivatives: Readonly<Record<Opcode, Derivative>> = {
  add: () => [term(1), term(1)],
  sub: () => [term(1), term(-1)],
  mul: ([x, y]) => [y, x],
  div: ([, y], self) => [Expression.of('div', 1, y as Expression), self.div(y as Expression).neg()],
  // Where both are equal each has half of the gradient, as in PyTorch.
  minimum: ([x, y]) => shares(x as Expression, y as Expression),
  maximum: ([x, y]) => shares(y as Expression, x as Expression),
  pow: ([x, y], self) => {
    const [base, exponent] = [x as Expression, y as Expression];
    return [
      zeroWhere(exponent.equal(0), exponent.mul(base.pow(exponent.sub(1)))),
      zeroWhere(base.equal(0).mul(exponent.greaterEqual(0)), self.mul(base.log())),
    ];
  },
  less: none,
  lessEqual: none,
  equal: none,
  neg: () => [term(-1)],
  abs: ([x]) => [(x as Expression).sign()],
  sign: none,
  sqrt: (_, self) => [Expression.of('div', 0.5, self)],
  rsqrt: ([x], self) => [self.div(x as Expression).mul(-0.5)],
  exp: (_, self) => [self],
  expm1: ([x]) => [(x as Expression).exp()],
  log: ([x]) => [Expression.of('div', 1, x as Expression)],
  log1p: ([x]) => [Expression.of('div', 1, (x as Expression).add(1))],
  sin: ([x]) => [(x as Expression).cos()],
  cos: ([x]) => [(x as Expression).sin().neg()],
  tanh: (_, self) => [Expression.of('sub', 1, self.square())],
  sigmoid: (_, self) => [self.mul(Expression.of('sub', 1, self))],
  erf: ([x]) => [
    (x as Expression)
      .square()
      .neg()
      .exp()
      .mul(2 / Math.sqrt(Math.PI)),
  ],
  normalCdf: ([x]) => [
    (x as Expression)
      .square()
      .mul(-0.5)
      .exp()
      .mul(1 / Math.sqrt(2 * Math.PI)),
  ],
  floor: none,
  round: none,
  where: none, // its gradient is chosen, not multiplied: see `gradientsOf`
  multiplyAdd: ([x, y]) => [y, x, term(1)],
  uniform: none,
  normal: none,
  lookup: none,
};

function shares(first: Expression, second: Expression): [Expression, Expression] {
  const tie = first.equal(second).mul(0.5);
  return [first.less(second).add(tie), second.less(first).add(tie)];
}

/** Expressions of `root` with what they are made of first, each once; equal ones are one. */
export function inOrder(roots: readonly Expression[]): { order: Expression[]; same: Map<Expression, Expression> } {
  const order: Expression[] = [];
  const same = new Map<Expression, Expression>();
  const byKey = new Map<string, Expression>();
  const numbers = new Map<Expression, number>();
  const visit = (e: Expression): Expression => {
    const known = same.get(e);
    if (known) return known;
    const args = e.args.map(visit);
    const key = `${e.op} ${Object.is(e.value, -0) ? '-0' : e.value} ${args.map((arg) => numbers.get(arg)).join(' ')}`;
    let own = byKey.get(key);
    if (!own) {
      own = e;
      byKey.set(key, e);
      numbers.set(e, order.length);
      order.push(e);
    }
    same.set(e, own);
    return own;
  };
  for (const root of roots) visit(root);
  return { order, same };
}

const isConstant = (e: Expression, value: number) => e.op === 'constant' && e.value === value;

/** gradient * factor without what changes nothing. */
function times(gradient: Expression, factor: Expression): Expression {
  if (isConstant(gradient, 1)) return factor;
  if (isConstant(factor, 1)) return gradient;
  return isConstant(factor, -1) ? gradient.neg() : gradient.mul(factor);
}

/**
 * The gradients of input 0 to `inputs` - 1, given that of the expression; undefined where it does not depend on an input.
 * Reverse accumulation over the formula.
 */
export function gradientsOf(root: Expression, gradient: Expression, inputs: number): (Expression | undefined)[] {
  const { order, same } = inOrder([root]);
  const adjoints = new Map<Expression, Expression>([[same.get(root) as Expression, gradient]]);
  const add = (to: Expression, part: Expression | undefined) => {
    if (!part || to.op === 'constant') return;
    const before = adjoints.get(to);
    adjoints.set(to, before ? before.add(part) : part);
  };
  for (const e of order.toReversed()) {
    const adjoint = adjoints.get(e);
    if (!adjoint || e.args.length === 0) continue;
    const args = e.args.map((arg) => same.get(arg) as Expression);
    if (e.op === 'where') {
      const [condition, yes, no] = args as [Expression, Expression, Expression];
      add(yes, condition.where(adjoint, 0));
      add(no, condition.where(0, adjoint));
    } else {
      const factors = derivatives[e.op as Opcode](args, e);
      for (const [i, arg] of args.entries()) {
        const factor = factors[i];
        add(arg, factor && times(adjoint, factor));
      }
    }
  }
  const result: (Expression | undefined)[] = new Array(inputs).fill(undefined);
  for (const e of order) if (e.op === 'input' && e.value < inputs) result[e.value] = adjoints.get(e);
  return result;
}

/** Which inputs the expressions read. */
export function inputsOf(roots: readonly Expression[], inputs: number): boolean[] {
  const used: boolean[] = new Array(inputs).fill(false);
  for (const e of inOrder(roots).order) if (e.op === 'input') used[e.value] = true;
  return used;
}
