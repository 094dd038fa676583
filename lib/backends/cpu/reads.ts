/** Memory that can be read, with the launches that matter to it. */
export interface Readable {
  readonly address: number;
  /** The last launch that writes it. */
  readonly lastWrite: number;
  /** Reads that have not had their bytes yet. */
  readonly pendingReads: PendingRead[];
}

export interface PendingRead {
  readonly launch: number;
  readonly byteOffset: number;
  readonly byteLength: number;
  /** Where the bytes went when something was about to overwrite them. */
  saved?: Uint8Array | Copy;
}

/** Words of a buffer in memory of their own; the bytes of a read begin within the first word. */
interface Copy {
  readonly buffer: Readable;
  readonly skip: number;
}

/** What reads need of the backend. */
export interface ReadSource {
  copyOut(address: number, byteLength: number): Uint8Array;
  isDone(launch: number): boolean;
  /** @throws ERR_WORKER when the launch was lost */
  wait(launch: number): Promise<void>;
  /** @throws ERR_WORKER when the launch was lost */
  waitSync(launch: number): void;
  /** Launches a copy. @throws ERR_OUT_OF_MEMORY */
  copyLater(from: Readable, byteOffset: number, words: number): Readable;
  free(copy: Readable): void;
}

/**
 * Reads in the order of the stream: each gives what the memory holds after the launches before it, whatever is launched
 * or written later.
 *
 * A read whose launches are done copies at once. Another one waits for them, and only when something is about to
 * overwrite the memory meanwhile are its bytes set aside: by the host where the launches are done by then, or else by a
 * launch of its own. So a read costs memory on the device only while results are overwritten faster than they are read.
 */
export class PendingReads {
  readonly #source: ReadSource;

  constructor(source: ReadSource) {
    this.#source = source;
  }

  async read(buffer: Readable, byteOffset: number, byteLength: number): Promise<Uint8Array> {
    const source = this.#source;
    const launch = buffer.lastWrite;
    if (source.isDone(launch)) {
      const bytes = this.#bytes(buffer, byteOffset, byteLength);
      await source.wait(launch); // done, but perhaps lost with a dead pool
      return bytes;
    }
    const read: PendingRead = { launch, byteOffset, byteLength };
    buffer.pendingReads.push(read);
    try {
      await source.wait(launch);
      const { saved } = read;
      if (saved === undefined) return this.#bytes(buffer, byteOffset, byteLength);
      if (saved instanceof Uint8Array) return saved;
      await source.wait(saved.buffer.lastWrite);
      return this.#bytes(saved.buffer, saved.skip, byteLength);
    } finally {
      if (read.saved === undefined) buffer.pendingReads.splice(buffer.pendingReads.indexOf(read), 1);
      else if (!(read.saved instanceof Uint8Array)) source.free(read.saved.buffer);
    }
  }

  /** To be called before a launch or the host overwrites a buffer. */
  beforeOverwriting(buffer: Readable): void {
    const { pendingReads } = buffer;
    if (pendingReads.length === 0) return;
    for (const read of pendingReads.splice(0)) read.saved = this.#save(buffer, read);
  }

  #save(buffer: Readable, { launch, byteOffset, byteLength }: PendingRead): Uint8Array | Copy {
    const source = this.#source;
    if (!source.isDone(launch)) {
      const skip = byteOffset % 4;
      try {
        return { buffer: source.copyLater(buffer, byteOffset - skip, Math.ceil((skip + byteLength) / 4)), skip };
      } catch {
        // Without memory for a copy the host waits; what was lost the read itself reports.
        try {
          source.waitSync(launch);
        } catch {}
      }
    }
    return this.#bytes(buffer, byteOffset, byteLength);
  }

  #bytes({ address }: Readable, byteOffset: number, byteLength: number): Uint8Array {
    return this.#source.copyOut(address + byteOffset, byteLength);
  }
}
