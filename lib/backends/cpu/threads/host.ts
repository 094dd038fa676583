import { totalmem } from 'node:os';
import { FlashAttnError } from '../../../base/errors.js';
import type { Struct } from '../../../kernels/struct.js';
import { type AddressSpace, Heap } from '../heap.js';
import type { Host, HostLaunch, LostLaunches } from '../host.js';
import { threadCount } from '../threadCount.js';
import { Waiters } from '../waiters.js';
import type { CpuAddon, NativeHost } from './addon.js';

/**
 * Floating-point operations up to which the calling thread runs a launch itself: some 50 us, what it costs to wake threads
 * and to be woken by them.
 */
const inPlaceWork = 4e6;

/** Memory that this process may have, as far as one knows. */
function memoryLimit(): number {
  const constrained = process.constrainedMemory?.() ?? 0;
  return constrained > 0 ? Math.min(constrained, totalmem()) : totalmem();
}

class NativeSpace implements AddressSpace {
  readonly start: number;
  readonly limit: number;
  readonly #native: NativeHost;
  #end: number;

  constructor(native: NativeHost) {
    this.#native = native;
    this.start = native.begin;
    this.limit = native.limit;
    this.#end = native.usable();
  }

  get end(): number {
    return this.#end;
  }

  grow(end: number): boolean {
    if (end > this.start + this.limit || !this.#native.grow(end)) return false;
    this.#end = this.#native.usable();
    return true;
  }

  discard(address: number, byteLength: number): void {
    this.#native.discard(address, byteLength);
  }

  outOfMemory(byteLength: number, available: number): FlashAttnError {
    return new FlashAttnError(
      'ERR_OUT_OF_MEMORY',
      `cpu: ${byteLength} bytes were asked for and ${available} of the ${this.limit} bytes of memory are available; dispose tensors or split the problem`,
    );
  }
}

/** Native threads. */
export class ThreadsHost implements Host {
  readonly device = 'cpu';
  readonly build = 'the addon for native threads';
  readonly structs: readonly Struct[] = [];
  readonly instructionSet: string;
  readonly threads = threadCount();
  readonly lanes: number;
  readonly workspaceBytes: number;
  readonly description: string;
  readonly maxPhases: number;
  readonly heap: Heap;
  readonly faulted = false;
  readonly #native: NativeHost;
  readonly #waiters = new Waiters();
  #published = 0;

  constructor(addon: CpuAddon, instructionSet: string) {
    this.instructionSet = instructionSet;
    try {
      this.#native = new addon.Host(instructionSet, this.threads, memoryLimit(), () => this.#tellWaiters());
    } catch (error) {
      throw new FlashAttnError('ERR_DEVICE', `cpu cannot be used: ${(error as Error).message}`, { cause: error });
    }
    this.lanes = this.#native.lanes;
    this.workspaceBytes = this.#native.workspaceBytes;
    this.description = this.#native.description;
    this.maxPhases = this.#native.maxPhases;
    this.heap = new Heap(new NativeSpace(this.#native));
  }

  get kernels(): string {
    return `cpu-${this.instructionSet}`;
  }

  /** Threads that work on a launch; fewer than `threads` where they cannot be had, and at least the calling one. */
  get activeThreads(): number {
    return Math.max(1, this.#native.threads() ?? this.threads);
  }

  copyIn(address: number, bytes: Uint8Array): void {
    this.#native.copyIn(address, bytes);
  }

  copyOut(address: number, byteLength: number): Uint8Array {
    // All of it is overwritten: zeros first would take as long as the copy.
    const bytes = new Uint8Array(Buffer.allocUnsafeSlow(byteLength).buffer, 0, byteLength);
    this.#native.copyOut(address, bytes);
    return bytes;
  }

  partition(shape: Uint8Array, into: Uint8Array): void {
    this.#native.partition(shape, into);
  }

  get published(): number {
    return this.#published;
  }

  get completed(): number {
    return this.#native.completed();
  }

  launch({ first, params, work }: HostLaunch): number {
    this.#published = this.#native.launch(first, params, work <= inPlaceWork);
    return this.#published;
  }

  wait(launch: number): Promise<void> {
    if (this.completed >= launch) return Promise.resolve();
    return new Promise((resolve) => {
      this.#waiters.add(launch, resolve);
      this.#tellWaiters();
    });
  }

  waitSync(launch: number): void {
    if (this.completed < launch) this.#native.wait(launch);
  }

  settle(launch: number): void {
    this.waitSync(launch);
  }

  /** Native threads do not die alone. */
  replace(): LostLaunches {
    return { from: this.#published, to: this.#published, cause: undefined };
  }

  #tellWaiters(): void {
    for (;;) {
      const { first } = this.#waiters;
      this.#native.await(first);
      if (first === undefined || this.completed < first) return;
      this.#waiters.tellFirst();
    }
  }
}
