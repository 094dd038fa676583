import type { Recording } from '../../kernels/device.js';
import type { Uploaded } from '../../kernels/memory.js';

/** What is being recorded, and the uploaded arrays that it uses: a recording keeps them where caches let go of them. */
export class Recorder<Kept> {
  #kept: Kept[] | undefined;
  #uploads: Uploaded[] = [];

  get active(): boolean {
    return this.#kept !== undefined;
  }

  keep(launch: Kept): void {
    this.#kept?.push(launch);
  }

  /** Passes an upload on. */
  using(uploaded: Uploaded): Uploaded {
    if (this.active) this.#uploads.push(uploaded);
    return uploaded;
  }

  /** @param make what becomes of what was kept while `run` ran */
  record(run: () => void, make: (kept: readonly Kept[]) => Recording): Recording {
    this.#kept = [];
    this.#uploads = [];
    try {
      run();
      const recording = make(this.#kept);
      const uploads = this.#uploads;
      for (const uploaded of uploads) uploaded.retain();
      return {
        replay: () => recording.replay(),
        dispose: () => {
          recording.dispose();
          for (const uploaded of uploads) uploaded.release();
        },
      };
    } finally {
      this.#kept = undefined;
      this.#uploads = [];
    }
  }
}
