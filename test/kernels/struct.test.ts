/** Structs are defined in native/structs and described in lib/kernels: both must agree by name and place, on every side. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { cpuSupport } from '../../lib/backends/cpu/threads/addon.js';
import { readText } from '../../lib/backends/cpu/wasm/host.js';
import { loadModule } from '../../lib/backends/cpu/wasm/module.js';
import { checkOpcodes, NativeBuild } from '../../lib/backends/shared/nativeBuild.js';
import { StructMemory } from '../../lib/backends/shared/structWriter.js';
import {
  attentionBackward,
  attentionForward,
  attentionPartition,
  attentionShape,
  pagedAttention,
} from '../../lib/kernels/attention.js';
import { codeMatmul } from '../../lib/kernels/codeMatmul.js';
import { copy, fill, peak } from '../../lib/kernels/copy.js';
import { crossEntropy, crossEntropyBackward } from '../../lib/kernels/crossEntropy.js';
import { diagonalScan, diagonalScanBackward } from '../../lib/kernels/diagonalScan.js';
import { elementwise } from '../../lib/kernels/elementwise.js';
import { opcodes } from '../../lib/kernels/expression.js';
import { gather } from '../../lib/kernels/gather.js';
import { headMixing, headMixingBackward } from '../../lib/kernels/headMixing.js';
import { linearScan, linearScanBackward } from '../../lib/kernels/linearScan.js';
import { addAlong, argmax, cumulativeSum, sort, takeAlong } from '../../lib/kernels/lines.js';
import { matmul } from '../../lib/kernels/matmul.js';
import { merge, mergeBackward, mergePart } from '../../lib/kernels/merge.js';
import { norm, normBackward } from '../../lib/kernels/norm.js';
import { quantise } from '../../lib/kernels/quantise.js';
import { recurrence, recurrenceBackward } from '../../lib/kernels/recurrence.js';
import { reduce } from '../../lib/kernels/reduce.js';
import { addRows, takeRows } from '../../lib/kernels/rowsByIndex.js';
import { scoreProgram } from '../../lib/kernels/scoreProgram.js';
import { selectedAttention, selectedAttentionBackward } from '../../lib/kernels/selectedAttention.js';
import { selectiveScan, selectiveScanBackward } from '../../lib/kernels/selectiveScan.js';
import { softmax, softmaxBackward } from '../../lib/kernels/softmax.js';
import { storeRows } from '../../lib/kernels/storeRows.js';
import { checkFields, parseDescription, type Struct, struct } from '../../lib/kernels/struct.js';
import { svd } from '../../lib/kernels/svd.js';
import { wkv, wkvBackward } from '../../lib/kernels/wkv.js';
import { hasCpu, onCpu } from '../support/cpu.js';
import { hasEmulator, loadEmulatedAddon, onEmulator } from '../support/emulator.js';

/** Every device has all of them. */
const everywhere = [
  attentionForward,
  attentionBackward,
  merge,
  mergeBackward,
  gather,
  matmul,
  quantise,
  codeMatmul,
  elementwise,
  reduce,
  softmax,
  softmaxBackward,
  norm,
  normBackward,
  takeRows,
  addRows,
  crossEntropy,
  crossEntropyBackward,
  argmax,
  sort,
  storeRows,
  takeAlong,
  addAlong,
  cumulativeSum,
  svd,
  recurrence,
  recurrenceBackward,
  linearScan,
  linearScanBackward,
  selectiveScan,
  selectiveScanBackward,
  diagonalScan,
  diagonalScanBackward,
  wkv,
  wkvBackward,
  copy,
  fill,
  peak,
];
/** And processors these too. */
const ofProcessors = [
  ...everywhere,
  headMixing,
  headMixingBackward,
  pagedAttention,
  selectedAttention,
  selectedAttentionBackward,
];

/** What a module with `describe` says of itself. */
function describeModule(module: WebAssembly.Module): string {
  const memory = new WebAssembly.Memory({ initial: 16, maximum: 65536, shared: true });
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  return readText(memory, (exports as { describe(): number }).describe());
}

function expectAgreement(
  text: string,
  operations: readonly { readonly name: string; readonly struct: object }[],
): void {
  const description = parseDescription(text);
  const others = [attentionShape, attentionPartition, mergePart, scoreProgram];
  const structs = [...operations.map((operation) => operation.struct), ...others];
  expect([...description.operations].sort()).toEqual(operations.map(({ name }) => name).sort());
  for (const described of structs) checkFields(description, described as unknown as Struct, 'the build');
  checkOpcodes(description, 'the build');
}

describe('structs and operations of this version', () => {
  it('are those of the WebAssembly build', () => expectAgreement(describeModule(loadModule().module), ofProcessors));

  it.skipIf(!hasCpu)(onCpu('are those of the addon for native threads'), () => {
    const support = cpuSupport();
    if ('code' in support) throw new Error(support.hint);
    const { addon, instructionSet } = support;
    const { description } = new addon.Host(instructionSet, 1, 2 ** 26, () => {});
    expectAgreement(description, ofProcessors);
  });

  it.skipIf(!hasEmulator)(onEmulator('are those of the addon'), () =>
    expectAgreement(loadEmulatedAddon().description, everywhere),
  );
});

describe('programs whose instructions have other numbers', () => {
  const text = describeModule(loadModule().module);
  const line = `opcodes ${opcodes.join(' ')}\n`;
  const builtWith = (names: readonly string[]) =>
    new NativeBuild('the build', text.replace(line, `opcodes ${names.join(' ')}\n`), []);
  const numberOf = (names: readonly string[]) => () => builtWith(names).numberOf(elementwise);

  it('are refused', () => {
    expect(text).toContain(line);
    expect(numberOf(opcodes)()).toBeGreaterThan(0);
    const [first, second, ...others] = opcodes;
    for (const [names, message] of [
      [[second, first, ...others], 'the build is of another version: its opcode 0 is sub where this version has add;'],
      [opcodes.slice(0, -1), 'is missing where this version has lookup; build it again'],
      [[...opcodes, 'cbrt'], 'is cbrt where this version has none'],
    ] as const)
      expect(numberOf(names)).toThrow(
        expect.objectContaining({ code: 'ERR_DEVICE', message: expect.stringContaining(message) }),
      );
  });

  it('are refused by attention, whose scores run programs, and by nothing that runs none', () => {
    const { length } = opcodes;
    const turned = builtWith(opcodes.map((_, at) => opcodes[length - 1 - at] as string));
    expect(() => turned.numberOf(attentionForward)).toThrow('its opcode 0 is lookup where this version has add');
    expect(turned.numberOf(gather)).toBeGreaterThan(0);
  });
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
