/** What the fuzzer's thread is told and tells. */
export interface Job {
  readonly target: string;
  readonly seed: number;
  readonly executions: number;
  readonly seconds: number;
  readonly corpus: readonly Uint8Array[];
  /** Run this one input and nothing else. */
  readonly replay?: Uint8Array | undefined;
  readonly current: SharedArrayBuffer;
}

export type Answer =
  | { readonly kind: 'done'; readonly executions: number; readonly characters: number; readonly corpus: Uint8Array[] }
  | { readonly kind: 'failure'; readonly message: string; readonly input: Uint8Array };

const headerBytes = 8;

/** The input that is being run, where the watching thread sees it even when the other one hangs or dies. */
export class CurrentInput {
  readonly #header: Int32Array;
  readonly #bytes: Uint8Array;

  constructor(readonly memory: SharedArrayBuffer) {
    this.#header = new Int32Array(memory, 0, 2);
    this.#bytes = new Uint8Array(memory, headerBytes);
  }

  static ofSize(bytes: number): CurrentInput {
    return new CurrentInput(new SharedArrayBuffer(headerBytes + bytes));
  }

  /** How many inputs there have been. */
  get count(): number {
    return Atomics.load(this.#header, 0);
  }

  get input(): Uint8Array {
    return Uint8Array.from(this.#bytes.subarray(0, Atomics.load(this.#header, 1)));
  }

  set(input: Uint8Array): void {
    this.#bytes.set(input.subarray(0, this.#bytes.length));
    Atomics.store(this.#header, 1, Math.min(input.length, this.#bytes.length));
    Atomics.add(this.#header, 0, 1);
  }
}
