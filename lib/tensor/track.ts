// What a tensor shows of differentiation. The recorder that stands behind it, lib/tape, knows tensors and not the other way
// round; here `Float` is a tensor of floating-point numbers and `Any` one of whatever dtype.

export interface BackwardOptions {
  /** Whether the graph can be walked once more; otherwise what it keeps is freed on the way. Default false. */
  readonly retainGraph?: boolean;
}

/** How a view is made of its tensor: a gradient goes the way back. */
export type ViewStep<Float> =
  /** Every element is seen once; `back` leads from a gradient of the view to that of the tensor. */
  | { readonly kind: 'whole'; readonly name: string; readonly back: (gradient: Float) => Float }
  /** Some elements are not seen; `again` makes the view of another tensor of the same shape. */
  | { readonly kind: 'part'; readonly name: string; readonly again: (t: Float) => Float }
  /** Elements are seen several times, as in broadcasting. */
  | { readonly kind: 'expand'; readonly name: string };

/** What the recorder keeps with a tensor that a gradient flows through. */
export interface Track<Any, Float> {
  /** Set by `parameter`; undefined for what was computed. */
  readonly isLeaf: boolean;
  grad: Float | undefined;
  recordView(source: Any, view: Any, step: ViewStep<Float>): void;
  /** The tensor has been disposed. */
  released(): void;
  backward(t: Any, gradient: Float | undefined, options: BackwardOptions): void;
}

/** What of a tensor is known here. */
export interface Handle {
  dispose(): void;
}

/** Told of every tensor that is made, while somebody wants to know. */
interface Watcher {
  created(t: Handle): void;
}

let watcher: Watcher | undefined;

/** Sees every tensor that is made, also those that nobody watches. */
let spy: ((t: Handle) => void) | undefined;

export function noteCreated(t: Handle): void {
  watcher?.created(t);
  spy?.(t);
}

/** What `f` returns; `see` is told of every tensor that it makes. */
export function seeing<T>(see: (t: Handle) => void, f: () => T): T {
  const before = spy;
  spy = (t) => {
    see(t);
    before?.(t);
  };
  try {
    return f();
  } finally {
    spy = before;
  }
}

/** What `f` returns; `created` is told of what it leaves to its caller: not of what it tidies up itself, nor of what is to stay. */
export function watching<T>(created: (t: Handle) => void, f: () => T): T {
  const before = watcher;
  watcher = {
    created: (t) => {
      created(t);
      before?.created(t);
    },
  };
  try {
    return f();
  } finally {
    watcher = before;
  }
}

/** What `f` returns; nobody watches what it makes. */
export function unwatched<T>(f: () => T): T {
  const before = watcher;
  watcher = undefined;
  try {
    return f();
  } finally {
    watcher = before;
  }
}

/** What `f` returns: tensors, and nothing else that it made stays. */
export function tidying<T>(f: () => T, stays: (result: T) => readonly (Handle | undefined)[]): T {
  const made = new Set<Handle>();
  const before = watcher;
  watcher = { created: (t) => made.add(t) };
  let result: T;
  try {
    result = f();
    for (const t of stays(result)) if (t && made.delete(t)) before?.created(t);
    return result;
  } finally {
    watcher = before;
    for (const t of made) t.dispose();
  }
}
