/** Structs are defined in native/structs and described in lib/kernels: both must agree by name and place, on every side. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { cpuSupport } from '../../lib/backends/cpu/threads/addon.js';
import { readText } from '../../lib/backends/cpu/wasm/host.js';
import { loadModule } from '../../lib/backends/cpu/wasm/module.js';
import { StructMemory } from '../../lib/backends/shared/structWriter.js';
import {
  attentionBackward,
  attentionForward,
  attentionPartition,
  attentionShape,
} from '../../lib/kernels/attention.js';
import { copy, fill, peak } from '../../lib/kernels/copy.js';
import { gather } from '../../lib/kernels/gather.js';
import { matmul } from '../../lib/kernels/matmul.js';
import { merge, mergeBackward, mergePart } from '../../lib/kernels/merge.js';
import { checkFields, parseDescription, type Struct, struct } from '../../lib/kernels/struct.js';
import { hasCpu, onCpu } from '../support/cpu.js';
import { hasEmulator, loadEmulatedAddon, onEmulator } from '../support/emulator.js';

const everywhere = [attentionForward, attentionBackward, merge, mergeBackward, gather, copy, fill, peak];
const onProcessors = [...everywhere, matmul];
type Operations = readonly { readonly name: string; readonly struct: unknown }[];

/** What a module with `describe` says of itself. */
function describeModule(module: WebAssembly.Module): string {
  const memory = new WebAssembly.Memory({ initial: 16, maximum: 65536, shared: true });
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  return readText(memory, (exports as { describe(): number }).describe());
}

function expectAgreement(text: string, operations: Operations): void {
  const description = parseDescription(text);
  const structs = [...operations.map((operation) => operation.struct), attentionShape, attentionPartition, mergePart];
  expect([...description.operations].sort()).toEqual(operations.map(({ name }) => name).sort());
  for (const described of structs) checkFields(description, described as Struct, 'the build');
}

describe('structs and operations of this version', () => {
  it('are those of the WebAssembly build', () => expectAgreement(describeModule(loadModule().module), onProcessors));

  it.skipIf(!hasCpu)(onCpu('are those of the addon for native threads'), () => {
    const support = cpuSupport();
    if ('code' in support) throw new Error(support.hint);
    const { addon, instructionSet } = support;
    const { description } = new addon.Host({ instructionSet, threads: 1, memory: 2 ** 26 }, () => {});
    expectAgreement(description, onProcessors);
  });

  it.skipIf(!hasEmulator)(onEmulator('are those of the addon'), () =>
    expectAgreement(loadEmulatedAddon().description, everywhere),
  );
});

const folder = fileURLToPath(new URL('../../native/structs', import.meta.url));
const program = `
#include "structs/gather.h"
char text[2048];
extern "C" __attribute__((export_name("describe"))) const char* describe() {
  {
    flashattn::FieldText to(text);
    describe_fields(to, static_cast<const flashattn::BlockLists*>(nullptr));
    describe_fields(to, static_cast<const flashattn::GatherParams*>(nullptr));
  }
  return text;
}`;

type Tree = { [name: string]: string | Uint8Array | Tree };
type RunClang = (command: string[], files: Tree, options: object) => Promise<Tree | undefined>;

/** GatherParams as it is compiled from native/structs with a change. */
async function compiled(find: string, replace: string): Promise<string> {
  const files = Object.fromEntries(readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), 'utf8')]));
  const parts = (files['gather.h'] as string).split(find);
  expect(parts).toHaveLength(2);
  files['gather.h'] = parts.join(replace);
  const flags = ['--target=wasm32-unknown-unknown', '-std=c++20', '-ffreestanding', '-nostdlib', '-nostdinc++'];
  const link = [
    '--no-entry',
    '--import-memory',
    '--shared-memory',
    '--max-memory=4294967296',
    '--initial-memory=1048576',
  ];
  const command = [
    'clang++',
    ...flags,
    '-I.',
    '-matomics',
    '-mbulk-memory',
    'a.cc',
    ...link.map((flag) => `-Wl,${flag}`),
    '-o',
    'a.wasm',
  ];
  const { runClang } = (await import('@yowasp/clang')) as unknown as { runClang: RunClang };
  const made = await runClang(command, { 'a.cc': program, structs: files }, { stdout: null, fetchProgress: () => {} });
  return describeModule(new WebAssembly.Module(made?.['a.wasm'] as Uint8Array<ArrayBuffer>));
}

describe('a struct that was compiled from another definition', () => {
  const check = (text: string) => () => checkFields(parseDescription(text), gather.struct as Struct, 'the build');

  it('is accepted where it is the same', async () => {
    check(await compiled('int32_t reserved;', 'int32_t reserved; '))();
  });

  it.each([
    [
      'swapped fields of one size',
      'int64_t source_batch, source_row;',
      'int64_t source_row, source_batch;',
      'source_row@16:8',
    ],
    ['swapped pointers', 'Pointer<void> result; ', 'Pointer<void> result_, result; ', 'result@16:8'],
    ['a field of another size', 'float scale;', 'double scale;', 'scale@64:8'],
  ])('is refused: %s', async (_, find, replace, named) => {
    const text = await compiled(find, replace);
    expect(check(text)).toThrow(named);
    expect(check(text)).toThrow('the build is of another version: its GatherParams');
  });

  it('is refused where a field is not named', async () => {
    expect(check(await compiled('row_elements, scale,', 'row_elements,'))).toThrow('scale@64:4');
  });
});

describe('a description', () => {
  it('places fields at multiples of their sizes, and writes and reads them', () => {
    const inner = struct('Inner', { a: 'int64', b: 'int32', reserved: 'int32' });
    const outer = struct('Outer', {
      x: 'float32',
      y: 'int32',
      inner,
      many: { of: 'int64', count: 2 },
      type: 'dtype',
      last: 'uint32',
    });
    expect(outer.fields.map(({ offset, size }) => [offset, size])).toEqual([
      [0, 4],
      [4, 4],
      [8, 16],
      [24, 16],
      [40, 4],
      [44, 4],
    ]);
    const memory = new StructMemory(new ArrayBuffer(outer.byteLength));
    memory.words.fill(0xffffffff);
    memory.write(outer, { x: 1.5, y: -2, inner: { a: 2 ** 40 + 1, b: 7 }, many: [-1, 3], type: 'bfloat16', last: 9 });
    const view = new DataView(memory.words.buffer);
    expect([view.getFloat32(0, true), view.getInt32(4, true)]).toEqual([1.5, -2]);
    expect([view.getBigInt64(8, true), view.getInt32(16, true)]).toEqual([2n ** 40n + 1n, 7]);
    expect([view.getBigInt64(24, true), view.getBigInt64(32, true)]).toEqual([-1n, 3n]);
    expect([view.getInt32(40, true), view.getUint32(44, true)]).toEqual([2, 9]);
    expect(memory.read(inner, 8)).toMatchObject({ a: 2 ** 40 + 1, b: 7 });
    memory.write(outer, { x: 0, y: 0, inner: undefined, many: [0, 0], type: undefined, last: 0 });
    expect(memory.words.every((word) => word === 0)).toBe(true);
  });
});
