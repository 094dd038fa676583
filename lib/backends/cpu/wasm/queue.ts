import { type Field, type Struct, struct } from '../../../kernels/struct.js';
import { Waiters } from '../waiters.js';

const slotCount = 4096;

/** A launch in native/cpu/wasm/queue.h. */
export const slotStruct = struct('Slot', {
  ticket: 'int64',
  items: 'uint32',
  done: 'uint32',
  launch: 'uint32',
  unused: { of: 'uint32', count: 11 },
  params: { of: 'uint32', count: 256 },
});

/** What lies before the slots. */
export const headerStruct = struct('QueueHeader', {
  published: 'uint32',
  completed: 'uint32',
  event: 'uint32',
  spins: 'uint32',
  fault: 'uint32',
  slots: 'uint32',
  awaited: 'uint32',
  sleepers: 'uint32',
  unused: { of: 'uint32', count: 8 },
});

const placeOf = (described: Struct, name: string) => described.fields.find((field) => field.name === name) as Field;

const slotBytes = slotStruct.byteLength;
const { offset: paramsOffset } = placeOf(slotStruct as Struct, 'params');
const itemsWord = placeOf(slotStruct as Struct, 'items').offset / 4;
export const queueBytes = headerStruct.byteLength + slotCount * slotBytes;

const lookMilliseconds = 1000;

const noItems = 0xffffffffn;

/** Where words of the header lie. */
export const field = Object.fromEntries(headerStruct.fields.map(({ name, offset }) => [name, offset / 4])) as Readonly<
  Record<'published' | 'completed' | 'event' | 'spins' | 'fault' | 'slots' | 'awaited', number>
>;

/** How the calling thread runs launches itself. */
export interface InPlace {
  /** Runs pending launches of the queue at this address, up to items that other threads hold. */
  runPending(queue: number): void;
  /** Runs a launch that is in no queue. */
  run(launch: number, params: number, items: number): void;
}

/** How many items a launch has, given the address of its parameters; -1 where there is no such launch. */
export type CountItems = (launch: number, params: number) => number;

/**
 * The host's side of the launch queue. Launches are numbered from 1 without end; memory holds the numbers modulo 2^32.
 *
 * 4,096 launches can be pending. Publishing another one blocks until the oldest is done, working on it meanwhile. The
 * ring is 4.5 MB of address space, of which memory is taken as slots are first used.
 */
export class LaunchQueue {
  readonly address: number;
  readonly #slots: Uint32Array;
  readonly #words: Int32Array;
  readonly #tickets: BigInt64Array;
  readonly #inPlace: InPlace;
  readonly #waiters = new Waiters();
  #watching = false;
  #published: number;

  /** @param launched how many launches came before this queue */
  constructor(memory: WebAssembly.Memory, address: number, launched: number, spins: number, inPlace: InPlace) {
    this.address = address;
    // Growing the memory makes larger buffers, but old views of its start stay valid. Slots need no clearing: nobody
    // looks at one that was never published.
    const { buffer } = memory;
    this.#slots = new Uint32Array(buffer, 0, (address + queueBytes) / 4);
    this.#words = new Int32Array(buffer, address, headerStruct.byteLength / 4);
    this.#tickets = new BigInt64Array(buffer, address, queueBytes / 8);
    this.#inPlace = inPlace;
    this.#words.fill(0);
    this.#words[field.published] = launched;
    this.#words[field.completed] = launched;
    this.#words[field.awaited] = launched;
    this.#words[field.spins] = spins;
    this.#words[field.slots] = slotCount;
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

  /** Whether nothing is pending. */
  get idle(): boolean {
    return Atomics.load(this.#words, field.completed) === (this.#published | 0);
  }

  /**
   * Enqueues a launch, which threads may sleep through until `announce` is called; one without items is none. Blocks only
   * while 4,096 launches are pending.
   *
   * @returns the number of the launch that has to be done for this one to be; -1 where there is no such launch
   */
  publish(launch: number, params: Uint32Array, countItems: CountItems): number {
    const slot = this.#nextSlot();
    const ticket = (slot - this.address) / 8;
    // A worker that fell asleep over the slot's last launch must not take an item from the half-written next one.
    Atomics.store(this.#tickets, ticket, noItems);
    const items = this.#fill(slot, launch, params, countItems);
    if (items <= 0) return items === 0 ? this.#published : -1;
    this.#slots.set([items, 0, launch], slot / 4 + itemsWord);
    Atomics.store(this.#tickets, ticket, BigInt.asIntN(64, BigInt(this.#published % 2 ** 32) << 32n));
    this.#published++;
    Atomics.store(this.#words, field.published, this.#published | 0);
    return this.#published;
  }

  /** Wakes the threads for what was published. */
  announce(): void {
    Atomics.add(this.#words, field.event, 1);
    Atomics.notify(this.#words, field.event);
  }

  /** Runs a launch on the calling thread; the queue must be idle. Returns as `publish`: the launch is done. */
  runInPlace(launch: number, params: Uint32Array, countItems: CountItems): number {
    const slot = this.#nextSlot();
    const items = this.#fill(slot, launch, params, countItems);
    if (items < 0) return -1;
    if (items > 0) this.#inPlace.run(launch, slot + paramsOffset, items);
    return this.#published;
  }

  /** Whether a worker stopped on an error: what is pending will never be done. */
  get faulted(): boolean {
    return Atomics.load(this.#words, field.fault) !== 0;
  }

  /** Blocks until launch `number` is done, working on it meanwhile, or until the queue has faulted. */
  waitSync(number: number): void {
    while (!this.faulted) {
      this.#sleepFor(number);
      const raw = Atomics.load(this.#words, field.completed);
      if (this.#numberOf(raw) >= number) return;
      this.#inPlace.runPending(this.address);
      // Sleeps only when nothing was done meanwhile: other threads hold all items that are left.
      Atomics.wait(this.#words, field.completed, raw, lookMilliseconds);
    }
  }

  /** Resolves when launch `number` is done or the queue has faulted. It does not keep the process alive. */
  wait(number: number): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters.add(number, resolve);
      if (this.#watching) this.#tellWaiters();
      else this.#watch();
    });
  }

  /** Declares the queue dead: wakes whoever waits for it and ends its threads. */
  fault(): void {
    Atomics.store(this.#words, field.fault, 1);
    Atomics.notify(this.#words, field.completed);
    this.announce();
  }

  async #watch(): Promise<void> {
    this.#watching = true;
    for (let seen = this.#tellWaiters(); this.#waiters.first !== undefined; seen = this.#tellWaiters()) {
      const sleep = Atomics.waitAsync(this.#words, field.completed, seen);
      if (sleep.async) await sleep.value;
    }
    this.#watching = false;
  }

  /** Returns the `completed` that it told of. */
  #tellWaiters(): number {
    for (;;) {
      const { first } = this.#waiters;
      if (first !== undefined) this.#sleepFor(first);
      const raw = Atomics.load(this.#words, field.completed);
      if (first === undefined || (this.#numberOf(raw) < first && !this.faulted)) return raw;
      this.#waiters.tellFirst();
    }
  }

  /** Before `completed` is looked at: from launch `number` on, or one that is waited for already, changes are announced. */
  #sleepFor(number: number): void {
    Atomics.store(this.#words, field.awaited, Math.min(number, this.#waiters.first ?? number) | 0);
  }

  /** The address of the slot that the next launch goes to. */
  #nextSlot(): number {
    if (this.#published - this.completed >= slotCount) this.waitSync(this.#published - slotCount + 1);
    return this.address + headerStruct.byteLength + (this.#published % slotCount) * slotBytes;
  }

  #fill(slot: number, launch: number, params: Uint32Array, countItems: CountItems): number {
    const address = slot + paramsOffset;
    this.#slots.set(params, address / 4);
    return countItems(launch, address);
  }

  /** The launch number that a stored value of `completed` stands for. */
  #numberOf(raw: number): number {
    return this.#published - ((this.#published - raw) >>> 0);
  }
}
