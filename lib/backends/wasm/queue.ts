// The layout of native/cpu/wasm/queue.h.
const slotCount = 512;
const slotHeaderBytes = 24;
/** Room for the params of a launch. */
export const slotParamBytes = 256 * 4;
const slotBytes = slotHeaderBytes + slotParamBytes;
const headerBytes = 64;
export const queueBytes = headerBytes + slotCount * slotBytes;

const lookMilliseconds = 1000;
const startMilliseconds = 30_000;

const noItems = 0xffffffffn;

const field = { published: 0, completed: 1, event: 2, spins: 3, fault: 4, started: 5 } as const;

/**
 * The host's side of the launch queue. Launches are numbered from 1 without end; memory holds the numbers modulo 2^32.
 */
export class LaunchQueue {
  readonly #memory: WebAssembly.Memory;
  readonly address: number;
  readonly #words: Int32Array;
  #published: number;

  /** @param launched how many launches came before this queue */
  constructor(memory: WebAssembly.Memory, address: number, launched: number, spins: number) {
    this.#memory = memory;
    this.address = address;
    // Growing the memory makes larger buffers, but old views of its start stay valid.
    this.#words = new Int32Array(memory.buffer, address, queueBytes / 4);
    this.#words.fill(0);
    this.#words[field.published] = launched;
    this.#words[field.completed] = launched;
    this.#words[field.spins] = spins;
    this.#published = launched;
  }

  /** The number of the last launch. */
  get published(): number {
    return this.#published;
  }

  /** The number of the last launch that is done; all before it are done too. */
  get completed(): number {
    return this.#numberOf(Atomics.load(this.#words, field.completed));
  }

  /**
   * Enqueues a launch; one without items is none. Blocks only while 512 launches are pending.
   *
   * @param countItems given the address of the parameters; -1: there is no such launch
   * @returns the number of the launch that has to be done for this one to be, -1 where there is no such launch
   */
  publish(launch: number, params: Uint32Array, countItems: (launch: number, params: number) => number): number {
    if (this.#published - this.completed >= slotCount) this.waitSync(this.#published - slotCount + 1);
    const slot = (this.#published % 2 ** 32) % slotCount;
    const address = this.address + headerBytes + slot * slotBytes;
    const ticket = new BigInt64Array(this.#memory.buffer, address, 1);
    // A worker that fell asleep over the slot's last launch must not take an item from the half-written next one.
    Atomics.store(ticket, 0, noItems);
    const words = new Uint32Array(this.#memory.buffer, address, slotBytes / 4);
    words.set(params, slotHeaderBytes / 4);
    const items = countItems(launch, address + slotHeaderBytes);
    if (items <= 0) return items === 0 ? this.#published : -1;
    words.set([items, 0, launch, 0], 2);
    Atomics.store(ticket, 0, BigInt.asIntN(64, BigInt(this.#published % 2 ** 32) << 32n));
    this.#published++;
    Atomics.store(this.#words, field.published, this.#published | 0);
    this.#announce();
    return this.#published;
  }

  /** Whether a worker stopped on an error: what is pending will never be done. */
  get faulted(): boolean {
    return Atomics.load(this.#words, field.fault) !== 0;
  }

  /**
   * Blocks until launch `number` is done or the queue has faulted. Nobody can report that a thread could not be started
   * while this one blocks, so that counts as a fault when none has started for half a minute.
   */
  waitSync(number: number): void {
    const deadline = performance.now() + startMilliseconds;
    while (!this.faulted) {
      const raw = Atomics.load(this.#words, field.completed);
      if (this.#numberOf(raw) >= number) return;
      Atomics.wait(this.#words, field.completed, raw, lookMilliseconds);
      if (Atomics.load(this.#words, field.started) === 0 && performance.now() > deadline) this.fault();
    }
  }

  /** Resolves when launch `number` is done or the queue has faulted. It does not keep the process alive. */
  async wait(number: number): Promise<void> {
    while (!this.faulted) {
      const raw = Atomics.load(this.#words, field.completed);
      if (this.#numberOf(raw) >= number) return;
      const wait = Atomics.waitAsync(this.#words, field.completed, raw);
      if (wait.async) await wait.value;
    }
  }

  /** Declares the queue dead and wakes whoever waits for it. */
  fault(): void {
    Atomics.store(this.#words, field.fault, 1);
    Atomics.notify(this.#words, field.completed);
  }

  #announce(): void {
    Atomics.add(this.#words, field.event, 1);
    Atomics.notify(this.#words, field.event);
  }

  /** The launch number that a stored value of `completed` stands for. */
  #numberOf(raw: number): number {
    return this.#published - ((this.#published - raw) >>> 0);
  }
}
