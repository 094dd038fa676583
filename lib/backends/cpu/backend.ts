import { FlashAttnError } from '../../base/errors.js';
import { type AttentionProblem, attentionPartition, attentionShape, shapeOf } from '../../kernels/attention.js';
import { asStrided, copy, peak } from '../../kernels/copy.js';
import type { Backend, MemoryReport, Recording } from '../../kernels/device.js';
import type { DeviceBuffer, HostArray, Uploaded } from '../../kernels/memory.js';
import type { Launch, Operation } from '../../kernels/operation.js';
import { scoreProgram } from '../../kernels/scoreProgram.js';
import type { Fields, Struct } from '../../kernels/struct.js';
import { NativeBuild } from '../shared/nativeBuild.js';
import { Recorder } from '../shared/recorder.js';
import { mostParamsBytes, Staged } from '../shared/staged.js';
import { StructMemory } from '../shared/structWriter.js';
import { Uploads } from '../shared/uploads.js';
import type { Heap } from './heap.js';
import { type Host, type HostLaunch, type LostLaunches, workerError } from './host.js';
import { type PendingRead, PendingReads, type Readable } from './reads.js';

const peakIterations = 1 << 14;
const peakFlopsPerLane = 2 * 8; // of an iteration: multiply and add, 8 chains

/** Memory in the heap, with the numbers of the launches that matter to it. */
class HostBuffer implements DeviceBuffer, Readable {
  /** The last launch that writes it: reading waits for this one. */
  lastWrite = 0;
  /** The last launch that touches it at all: overwriting or freeing waits for this one. */
  lastUse = 0;
  revision = 0;
  readonly pendingReads: PendingRead[] = [];

  constructor(
    readonly address: number,
    readonly byteLength: number,
  ) {}
}

type Purpose = 'hostWritten' | 'deviceWritten';

/** What a launch leaves behind in the buffers that it uses. */
interface PreparedLaunch extends HostLaunch, Pick<Launch<Fields>, 'reads' | 'writes'> {}

/** The kernels of native/cpu, wherever they run. */
export class CpuBackend<H extends Host> implements Backend {
  readonly device: H['device'];
  readonly packsFactors = true;
  readonly turnsRows = true;
  readonly host: H;
  readonly #heap: Heap;
  readonly #build: NativeBuild;
  readonly #params = new StructMemory(new ArrayBuffer(mostParamsBytes));
  readonly #shape = new Staged(attentionShape.byteLength);
  readonly #partition = new Staged(attentionPartition.byteLength);
  readonly #lost: LostLaunches[] = [];
  readonly #reads: PendingReads;
  readonly #uploads: Uploads;
  readonly #recorder: Recorder<PreparedLaunch>;
  observer: Backend['observer'];
  #tensors = 0;

  constructor(host: H) {
    this.host = host;
    this.device = host.device;
    this.#heap = host.heap;
    const structs = [...host.structs, attentionShape, attentionPartition, scoreProgram] as readonly Struct[];
    this.#build = new NativeBuild(host.build, host.description, structs);
    const free = (buffer: DeviceBuffer) => this.#free(buffer as HostBuffer);
    this.#recorder = new Recorder({
      take: (byteLength) => this.#allocate(byteLength, 'deviceWritten'),
      give: (buffer) => {
        // Launches know the parts of it alone.
        (buffer as HostBuffer).lastUse = host.published;
        free(buffer);
      },
      part: (address, byteLength) => this.#buffer(address, byteLength, 'deviceWritten'),
    });
    this.#uploads = new Uploads({
      allocate: (byteLength, purpose) => this.#allocate(byteLength, purpose),
      free,
      write: (buffer, byteOffset, bytes) => this.#write(buffer as HostBuffer, byteOffset, bytes),
    });
    this.#reads = new PendingReads({
      isDone: (launch) => launch <= host.completed,
      wait: (launch) => this.#waitFor(launch),
      waitSync: (launch) => this.#waitSync(launch),
      copyOut: (address, byteLength) => host.copyOut(address, byteLength),
      copyLater: (from, byteOffset, words) => this.#copyLater(from as HostBuffer, byteOffset, words),
      free: (buffer) => this.free(buffer as HostBuffer),
    });
  }

  get kernels(): string {
    return this.host.kernels;
  }

  get threads(): number {
    return this.host.threads;
  }

  get workspaceBytes(): number {
    return this.threads * this.host.workspaceBytes;
  }

  get isRecording(): boolean {
    return this.#recorder.active;
  }

  allocate(byteLength: number, purpose: Purpose): HostBuffer {
    if (!this.#recorder.active) return this.#allocate(byteLength, purpose);
    if (purpose === 'deviceWritten') return this.#recorder.allocate(byteLength) as HostBuffer;
    return this.#recorder.constant(this.#allocate(byteLength, purpose));
  }

  #allocate(byteLength: number, purpose: Purpose): HostBuffer {
    const { host } = this;
    let address = this.#heap.allocate(
      byteLength,
      purpose === 'hostWritten' ? host.completed : Number.POSITIVE_INFINITY,
    );
    if (address === undefined && purpose === 'hostWritten') {
      // Memory freed behind pending launches is the host's once they are done.
      this.#settle(host.published);
      address = this.#heap.allocate(byteLength, host.published);
    }
    if (address === undefined) throw this.#heap.outOfMemory(byteLength);
    return this.#buffer(address, byteLength, purpose);
  }

  #buffer(address: number, byteLength: number, purpose: Purpose): HostBuffer {
    const buffer = new HostBuffer(address, byteLength);
    // Its last owner's launches may still be pending, also when it is freed or written again before any launch of its own.
    if (purpose === 'deviceWritten') buffer.lastUse = this.host.published;
    return buffer;
  }

  free(buffer: DeviceBuffer): void {
    if (!this.#recorder.free(buffer)) this.#free(buffer as HostBuffer);
  }

  #free(buffer: HostBuffer): void {
    this.#heap.free(buffer.address, buffer.byteLength, buffer.lastUse);
  }

  write(buffer: DeviceBuffer, byteOffset: number, bytes: Uint8Array): void {
    this.#recorder.checkWrite(buffer);
    this.#write(buffer as HostBuffer, byteOffset, bytes);
  }

  #write(target: HostBuffer, byteOffset: number, bytes: Uint8Array): void {
    this.#settle(target.lastUse);
    this.#reads.beforeOverwriting(target);
    this.host.copyIn(target.address + byteOffset, bytes);
    target.lastWrite = 0;
  }

  upload<Owner extends object>(owner: Owner, arraysOf: (owner: Owner) => readonly HostArray[]): Uploaded {
    return this.#recorder.using(this.#uploads.get(owner, arraysOf));
  }

  async read(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Promise<Uint8Array> {
    this.#recorder.refuse('reading a tensor');
    return this.#reads.read(buffer as HostBuffer, byteOffset, byteLength);
  }

  readSync(buffer: DeviceBuffer, byteOffset: number, byteLength: number): Uint8Array {
    this.#recorder.refuse('reading a tensor');
    this.#waitSync((buffer as HostBuffer).lastWrite);
    return this.host.copyOut(buffer.address + byteOffset, byteLength);
  }

  isInUse(buffer: DeviceBuffer): boolean {
    return (buffer as HostBuffer).lastUse > this.host.completed;
  }

  async wait(buffer: DeviceBuffer): Promise<void> {
    this.#recorder.refuse('what waits for a tensor');
    await this.#waitFor((buffer as HostBuffer).lastWrite);
  }

  checkIntact(buffer: DeviceBuffer, argument: string): void {
    const { lastWrite } = buffer as HostBuffer;
    if (this.host.faulted) this.#replaceThreads();
    const lost = this.#findLost(lastWrite);
    if (lost)
      throw new FlashAttnError('ERR_WORKER', `${argument} was never computed: a worker thread died before it`, {
        cause: lost.cause,
      });
  }

  has(operation: Pick<Operation<never>, 'name'>): boolean {
    return this.#build.has(operation);
  }

  launch<Operands, F extends Fields>(operation: Operation<Operands, F>, operands: Operands): void {
    const launch = operation.describe(operands);
    if (!launch) return;
    const { reads, writes, work } = launch;
    const first = this.#build.numberOf(operation) * this.host.maxPhases;
    const records = this.#recorder.active;
    if (!records) this.#beforeWriting(writes);
    this.#params.write(operation.struct, launch.params);
    const params = this.#params.words.subarray(0, operation.struct.byteLength / 4);
    if (records) this.#recorder.keep({ first, params: params.slice(), reads, writes, work });
    else if (this.observer)
      this.#observe(this.observer, { first, params, reads, writes, work }, operation.name, operands);
    else this.#queue({ first, params, reads, writes, work });
  }

  #observe(see: NonNullable<Backend['observer']>, launch: PreparedLaunch, operation: string, operands: unknown): void {
    this.#settle(this.host.published);
    const start = performance.now();
    this.#queue(launch);
    this.#settle(this.host.published);
    const milliseconds = performance.now() - start;
    const { reads, writes, work } = launch;
    see({ operation, operands, reads, writes, work, milliseconds: () => milliseconds });
  }

  record(run: () => void): Recording {
    return this.#recorder.record(run, (kept, live) => {
      // The host runs launches itself that are too little work for threads: of all of them together, not of each.
      const work = kept.reduce((sum, launch) => sum + launch.work, 0);
      const launches = kept.map((launch) => ({ ...launch, work }));
      return {
        replay: () => {
          // What somebody still reads may lie where something else lay before it.
          this.#beforeWriting(live());
          for (const launch of launches) {
            this.#beforeWriting(launch.writes);
            this.#queue(launch);
          }
        },
        dispose: () => {},
      };
    });
  }

  /** May launch copies of what pending reads have not had yet. */
  #beforeWriting(buffers: Iterable<DeviceBuffer>): void {
    if (this.host.faulted) this.#replaceThreads();
    for (const buffer of buffers) this.#reads.beforeOverwriting(buffer as HostBuffer);
  }

  #queue(launch: PreparedLaunch): void {
    const { reads, writes } = launch;
    const number = this.host.launch(launch);
    for (const buffer of writes as readonly HostBuffer[]) {
      buffer.lastWrite = buffer.lastUse = number;
      buffer.revision++;
    }
    for (const buffer of reads as readonly HostBuffer[]) buffer.lastUse = number;
  }

  partition(problem: AttentionProblem) {
    this.#shape.memory.write(attentionShape, shapeOf(problem));
    const result = this.#partition.first(attentionPartition.byteLength);
    this.host.partition(this.#shape.first(attentionShape.byteLength), result);
    return this.#partition.memory.read(attentionPartition);
  }

  async synchronize(): Promise<void> {
    this.#recorder.refuse('what waits for the device');
    await this.#waitFor(this.host.published);
  }

  memory(): MemoryReport {
    const { inUse, peak: most, reserved, limit } = this.#heap;
    return {
      device: this.device,
      bytesInUse: inUse,
      bytesPeak: most,
      bytesReserved: reserved,
      bytesLimit: limit,
      tensors: this.#tensors,
    };
  }

  emptyCache(): void {
    this.#heap.discard(this.host.completed);
  }

  tensorCreated(): void {
    this.#tensors++;
  }

  tensorDisposed(): void {
    this.#tensors--;
  }

  async measurePeak(): Promise<number> {
    const sink = this.allocate(64, 'hostWritten');
    this.write(sink, 0, new Uint8Array(new Float32Array([0.9999, 1e-4]).buffer));
    const items = 256 * this.threads;
    const milliseconds = await this.measure(() => this.launch(peak, { sink, items, iterations: peakIterations }));
    this.free(sink);
    return (items * peakIterations * peakFlopsPerLane * this.host.lanes) / (milliseconds / 1000);
  }

  async measure(run: () => void): Promise<number> {
    await this.synchronize();
    const start = performance.now();
    run();
    await this.synchronize();
    return performance.now() - start;
  }

  devicePointer(): never {
    throw noPointers(
      `a tensor on ${this.device} has no device pointer: its memory is reached through data() and write()`,
    );
  }

  adopt(): never {
    throw noPointers(`${this.device} cannot use memory by its pointer: copy the data with tensor()`);
  }

  setStream(): never {
    throw noPointers(`${this.device} has no streams`);
  }

  #replaceThreads(): void {
    this.#lost.push(this.host.replace());
  }

  #findLost(launch: number): { readonly cause: unknown } | undefined {
    return this.#lost.find(({ from, to }) => launch > from && launch <= to);
  }

  async #waitFor(launch: number): Promise<void> {
    await this.host.wait(launch);
    this.#checkComputed(launch);
  }

  #waitSync(launch: number): void {
    this.host.waitSync(launch);
    this.#checkComputed(launch);
  }

  #checkComputed(launch: number): void {
    const lost = this.#findLost(launch);
    if (lost) throw workerError(lost.cause);
  }

  /** Blocks until a launch is done or lost. */
  #settle(launch: number): void {
    this.host.settle(launch);
    if (this.host.faulted) this.#replaceThreads();
  }

  /** A copy of some words of a buffer, made in order behind what has been launched. @throws ERR_OUT_OF_MEMORY */
  #copyLater(from: HostBuffer, byteOffset: number, words: number): HostBuffer {
    const to = this.allocate(4 * words, 'deviceWritten');
    const array = (buffer: HostBuffer, offset: number) => asStrided({ buffer, offset, dtype: 'float32', count: words });
    this.launch(copy, { from: array(from, byteOffset / 4), to: array(to, 0) });
    return to;
  }
}

const noPointers = (message: string) => new FlashAttnError('ERR_DEVICE', message);
