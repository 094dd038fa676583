import { FlashAttnError } from '../../base/errors.js';
import type { Recording } from '../../kernels/device.js';
import type { DeviceBuffer, Uploaded } from '../../kernels/memory.js';
import { Arena, type ArenaSource } from './arena.js';

/** What a recorded launch touches. */
interface Touching {
  readonly reads: readonly DeviceBuffer[];
  readonly writes: readonly DeviceBuffer[];
}

/** A recording under way. */
interface Current<Kept> {
  readonly kept: Kept[];
  readonly uploads: Uploaded[];
  readonly arena: Arena;
  /** Written by the host, once for all replays. */
  readonly constants: Set<DeviceBuffer>;
  /** Buffers from outside that have been freed meanwhile. */
  readonly freed: DeviceBuffer[];
}

/**
 * What is being recorded, and the memory that recordings use. What is allocated while recording belongs to the recording;
 * what its launches touch besides stays where it is as long as they may be replayed, whoever frees it.
 */
export class Recorder<Kept extends Touching> {
  readonly #source: ArenaSource;
  #current: Current<Kept> | undefined;
  /** The arenas of buffers. */
  readonly #owners = new WeakMap<DeviceBuffer, Arena>();
  /** How many recordings use a buffer that is not their own. */
  readonly #holds = new Map<DeviceBuffer, number>();
  readonly #freedWhileHeld = new Set<DeviceBuffer>();

  constructor(source: ArenaSource) {
    this.#source = source;
  }

  get active(): boolean {
    return this.#current !== undefined;
  }

  keep(launch: Kept): void {
    this.#current?.kept.push(launch);
  }

  /** Passes an upload on: a recording keeps it where caches let go of it, also before the recording is done. */
  using(uploaded: Uploaded): Uploaded {
    if (this.#current) {
      uploaded.retain();
      this.#current.uploads.push(uploaded);
    }
    return uploaded;
  }

  /** Memory for launches, while recording. @throws ERR_OUT_OF_MEMORY */
  allocate(byteLength: number): DeviceBuffer {
    const { arena } = this.#current as Current<Kept>;
    const buffer = arena.allocate(byteLength);
    this.#owners.set(buffer, arena);
    return buffer;
  }

  /** Passes memory from outside of all arenas on that the host writes while recording. */
  constant<B extends DeviceBuffer>(buffer: B): B {
    this.#current?.constants.add(buffer);
    return buffer;
  }

  /** Whether the recorder sees to it that a buffer is freed. */
  free(buffer: DeviceBuffer): boolean {
    const owner = this.#owners.get(buffer);
    const current = this.#current;
    if (current && owner === current.arena) owner.free(buffer);
    else if (current) current.freed.push(buffer);
    else if (this.#holds.has(buffer)) this.#freedWhileHeld.add(buffer);
    else if (owner) owner.free(buffer);
    else return false;
    return true;
  }

  /** @throws ERR_OPTION while recording, for what cannot be recorded; `what` is done as by 'reading a tensor' */
  refuse(what: string): void {
    if (this.active)
      throw new FlashAttnError('ERR_OPTION', `launches are being recorded, which are not run yet: ${what} has to wait`);
  }

  /** @throws ERR_OPTION while recording, but for memory that has been allocated for it */
  checkWrite(buffer: DeviceBuffer): void {
    if (this.#current && !this.#current.constants.has(buffer)) this.refuse('writing a tensor');
  }

  /**
   * @param make what becomes of what was kept while `run` ran; `live` are the buffers of the recording that somebody has
   *   when it is replayed
   * @throws ERR_OPTION while recording, and what `run` throws: then nothing is left of it
   */
  record(run: () => void, make: (kept: readonly Kept[], live: () => Iterable<DeviceBuffer>) => Recording): Recording {
    this.refuse('another recording');
    const current: Current<Kept> = {
      kept: [],
      uploads: [],
      arena: new Arena(this.#source),
      constants: new Set(),
      freed: [],
    };
    const { kept, uploads, arena, freed } = current;
    this.#current = current;
    let recording: Recording;
    const held = new Set<DeviceBuffer>();
    try {
      try {
        run();
      } finally {
        this.#current = undefined;
      }
      for (const { reads, writes } of kept)
        for (const buffer of [...reads, ...writes]) if (this.#owners.get(buffer) !== arena) held.add(buffer);
      recording = make(kept, () => arena.live);
    } catch (error) {
      arena.close();
      for (const uploaded of uploads) uploaded.release();
      for (const buffer of freed) this.#give(buffer);
      throw error;
    }
    for (const buffer of held) this.#holds.set(buffer, (this.#holds.get(buffer) ?? 0) + 1);
    for (const buffer of freed) this.#give(buffer);
    return {
      replay: () => {
        this.refuse('a replay');
        recording.replay();
      },
      dispose: () => {
        recording.dispose();
        for (const uploaded of uploads) uploaded.release();
        for (const buffer of held) this.#release(buffer);
        arena.close();
      },
    };
  }

  #release(buffer: DeviceBuffer): void {
    const left = (this.#holds.get(buffer) as number) - 1;
    if (left > 0) {
      this.#holds.set(buffer, left);
      return;
    }
    this.#holds.delete(buffer);
    if (this.#freedWhileHeld.delete(buffer)) this.#give(buffer);
  }

  #give(buffer: DeviceBuffer): void {
    if (!this.free(buffer)) this.#source.give(buffer);
  }
}
