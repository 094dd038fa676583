/**
 * Retrieval as in RETRO (Borgeaud et al. 2022): a folder of texts becomes a database of chunks and what follows them; chunks
 * of a prompt find their neighbours in it, and chunked cross-attention goes on from them. `npm run retrieve -- --help` lists
 * the options.
 */
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { FlashAttnError } from 'flashattn';
import { nextToken } from './retrieve/copying.js';
import { Database, type Neighbour } from './retrieve/database.js';
import { chunksOf, FolderError, readDocuments, tokensOf } from './retrieve/documents.js';
import { type Options, parse, USAGE, UsageError } from './retrieve/options.js';
import { WordVectors } from './retrieve/vectors.js';

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const otherwise = {
  data: join(root, 'docs'),
  prompt: 'Softmax attention keeps all keys and values, and each query reads',
};

const print = (name: string, text: string) => process.stdout.write(`${name.padEnd(12)}${text}\n`);
const shown = (tokens: readonly string[]) => tokens.join('').replace(/\s+/g, ' ').trim();

function printNeighbours(chunk: readonly string[], neighbours: readonly Neighbour[]): void {
  print('\nchunk', shown(chunk));
  for (const { name, at, likeness, chunk: own, continuation } of neighbours) {
    print(`  ${likeness.toFixed(3)}`, `${name}, chunk ${at}`);
    print('    is', shown(own));
    print('    goes on', shown(continuation));
  }
}

async function main({ data, prompt, index, neighbours: count, chunk, tokens: most, seed, device }: Options) {
  using vectors = new WordVectors(128, seed, device);
  const documents = readDocuments(resolve(data), chunk);
  using database = await Database.open({ documents, vectors, chunk, seed, folder: index });
  print('documents', `${documents.length}, ${database.size} chunks of ${chunk} tokens in ${database.lists} lists`);
  print('index', index ? `${database.origin}, ${index}` : database.origin);

  const given = tokensOf(prompt);
  // Places without words in front, so that the prompt ends with a whole chunk.
  const missing = (chunk - (given.length % chunk)) % chunk;
  const tokens = [...Array<string>(missing).fill(''), ...given];
  const neighbours: Neighbour[][] = [];
  const retrieve = async () => {
    const whole = chunksOf(tokens, chunk).filter((own) => own.length === chunk);
    const found = await database.neighbours(whole.slice(neighbours.length), count);
    for (const [i, own] of found.entries()) printNeighbours(whole[neighbours.length + i] ?? [], own);
    neighbours.push(...found);
  };
  await retrieve();
  for (let written = 0; written < most; written++) {
    const next = await nextToken({ tokens, chunk, neighbours, count }, vectors);
    if (next === undefined) break;
    tokens.push(next);
    if (tokens.length % chunk === 0) await retrieve();
  }
  print('\nprompt', shown(given));
  print('goes on', shown(tokens.slice(missing + given.length)) || '(no neighbour does)');
}

try {
  const options = parse(process.argv.slice(2), otherwise);
  if (options === undefined) process.stdout.write(USAGE);
  else if (tokensOf(options.prompt).length === 0) throw new FolderError('--prompt has no word in it');
  else await main(options);
} catch (error) {
  if (error instanceof FlashAttnError || error instanceof FolderError) {
    process.stderr.write(`${error.code}: ${error.message}\n`);
    process.exit(1);
  }
  // parseArgs throws a TypeError for what it does not know.
  if (!(error instanceof UsageError || error instanceof TypeError)) throw error;
  process.stderr.write(`${error.message}\n\n${USAGE}`);
  process.exit(2);
}
