// The database of RETRO: for a chunk that is like a given one, that chunk and the one after it.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { VectorIndex } from 'flashattn/systems';
import type { Chunk, Document } from './documents.js';
import type { WordVectors } from './vectors.js';

/** What retrieval gives for one chunk. */
export interface Neighbour {
  readonly name: string;
  /** Which chunk of the document. */
  readonly at: number;
  /** The cosine of the angle between their vectors. */
  readonly likeness: number;
  readonly chunk: Chunk;
  /** What follows it in its document; empty behind the last. */
  readonly continuation: Chunk;
}

/** What the file beside an index says of it. */
interface Contents {
  readonly chunk: number;
  readonly seed: number;
  readonly documents: readonly { readonly name: string; readonly hash: string; readonly chunks: number }[];
}

/** Where the vectors come from that an index has. */
export type Origin = 'built' | 'read' | 'read and added to';

export interface DatabaseOptions {
  readonly documents: readonly Document[];
  readonly vectors: WordVectors;
  /** Tokens of a chunk. */
  readonly chunk: number;
  readonly seed: number;
  /** Where the index is kept, if anywhere. */
  readonly folder?: string | undefined;
}

const readContents = (path: string): Contents | undefined =>
  existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as Contents) : undefined;

export class Database implements Disposable {
  readonly #index: VectorIndex;
  readonly #vectors: WordVectors;
  /** Chunk i of the index. */
  readonly #places: readonly { readonly document: Document; readonly at: number }[];

  private constructor(
    index: VectorIndex,
    documents: readonly Document[],
    readonly origin: Origin,
    vectors: WordVectors,
  ) {
    this.#index = index;
    this.#vectors = vectors;
    this.#places = documents.flatMap((document) => document.chunks.map((_, at) => ({ document, at })));
  }

  /** Reads the index of a folder and adds what is new, or builds one where there is none or documents have changed. */
  static async open({ documents, vectors, chunk, seed, folder }: DatabaseOptions): Promise<Database> {
    const files = folder && { index: join(folder, 'index.safetensors'), contents: join(folder, 'documents.json') };
    const stored = files ? readContents(files.contents) : undefined;
    const byName = new Map(documents.map((document) => [document.name, document]));
    const known = (stored?.documents ?? []).map(({ name, hash }) => {
      const document = byName.get(name);
      return document?.hash === hash ? document : undefined;
    });
    const fits = stored?.chunk === chunk && stored.seed === seed && known.every((document) => document !== undefined);
    let made: { readonly index: VectorIndex; readonly documents: readonly Document[]; readonly origin: Origin };
    if (files && fits) {
      const old = known as Document[];
      const added = documents.filter((document) => !old.includes(document));
      const index = await VectorIndex.load(files.index, { device: vectors.device });
      if (added.length > 0) {
        using own = vectors.ofChunks(added.flatMap(({ chunks }) => chunks));
        index.add(own);
      }
      made = { index, documents: [...old, ...added], origin: added.length > 0 ? 'read and added to' : 'read' };
    } else {
      const chunks = documents.flatMap((document) => document.chunks);
      using own = vectors.ofChunks(chunks);
      const index = VectorIndex.build(own, { lists: Math.max(1, Math.floor(Math.sqrt(chunks.length))) });
      made = { index, documents, origin: 'built' };
    }
    if (files && folder && made.origin !== 'read') {
      mkdirSync(folder, { recursive: true });
      await made.index.save(files.index);
      const entries = made.documents.map(({ name, hash, chunks }) => ({ name, hash, chunks: chunks.length }));
      writeFileSync(files.contents, `${JSON.stringify({ chunk, seed, documents: entries }, undefined, 2)}\n`);
    }
    return new Database(made.index, made.documents, made.origin, vectors);
  }

  /** How many chunks it has. */
  get size(): number {
    return this.#index.size;
  }

  get lists(): number {
    return this.#index.lists;
  }

  /** The most alike of each chunk, the nearest first. */
  async neighbours(chunks: readonly Chunk[], count: number): Promise<Neighbour[][]> {
    using queries = this.#vectors.ofChunks(chunks);
    const { values, indices } = this.#index.search(queries, { count });
    const [likeness, found] = await Promise.all([values.data(), indices.data()]);
    values.dispose();
    indices.dispose();
    return chunks.map((_, row) =>
      Array.from({ length: count }, (_, i) => row * count + i).flatMap((at) => {
        const place = this.#places[found[at] ?? -1];
        if (!place) return [];
        const { document, at: own } = place;
        const [chunk = [], continuation = []] = document.chunks.slice(own, own + 2);
        return [{ name: document.name, at: own, likeness: likeness[at] as number, chunk, continuation }];
      }),
    );
  }

  [Symbol.dispose](): void {
    this.#index.dispose();
  }
}
