import { describe, expect, it } from 'vitest';
import { runNode } from '../support/child.js';

const script = new URL('../../scripts/kernel-resources.mjs', import.meta.url).href;

/** What an expression over the script's functions gives. */
async function evaluate(expression: string): Promise<unknown> {
  const program = `import { demangle, formatRecord, problems, readLog, readRecorded } from '${script}'; console.log(JSON.stringify(${expression}));`;
  const { code, stdout, stderr } = await runNode(['--input-type=module', '--eval', program, 'imported']);
  if (code !== 0) throw new Error(stderr);
  return JSON.parse(stdout.trim().split('\n').at(-1) ?? '');
}

const forward = '_ZN9flashattn14forward_kernelINS_7Float16ELi64ELNS_7VariantE1EEEvNS_15AttentionParamsE';
const log = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '${forward}' for 'sm_90'
ptxas info    : Function properties for ${forward}
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 249 registers, used 1 barriers, 16 bytes cumulative stack size
ptxas info    : Compile time = 614.409 ms
ptxas info    : Function properties for _ZN9flashattn14repair_forwardINS_7Float16EEEvRKNS_15AttentionParamsEiiii
    400 bytes stack frame, 80 bytes spill stores, 120 bytes spill loads
`;

describe('the check of kernel resources', () => {
  it.each([
    [forward, 'forward_kernel<Float16, 64, Small>'],
    [
      '_ZN9flashattn24backward_relative_kernelINS_8BFloat16ELi256EEEvNS_15AttentionParamsE',
      'backward_relative_kernel<BFloat16, 256>',
    ],
    [
      '_ZN9flashattn40_GLOBAL__N__f7d163cc_8_merge_cu_62ceadce12merge_kernelENS_9RowLaunchINS_11MergeParamsEEE',
      'merge_kernel',
    ],
    [
      '_ZN9flashattn13matmul_kernelINS_7Float16ELNS_10MatmulTileE1ELNS_5AlongE0ELS3_1EEEvNS_12MatmulLaunchE',
      'matmul_kernel<Float16, Small, Inner, Outer>',
    ],
  ])('reads the name %s', async (mangled, name) => {
    expect(await evaluate(`demangle('${mangled}')`)).toBe(name);
  });

  it('reads what ptxas says of a kernel, not of what it calls', async () => {
    expect(await evaluate(`readLog(${JSON.stringify(log)})`)).toEqual([
      {
        mangled: forward,
        name: 'forward_kernel<Float16, 64, Small>',
        architecture: '90',
        registers: 249,
        stack: 16,
        spillStores: 8,
        spillLoads: 12,
      },
    ]);
  });

  it('reads what it has recorded', async () => {
    const name = 'forward_kernel<Float16, 64, Small>';
    const collected = {
      kernels: { [name]: { 80: [249, 16, 8, 12] } },
      units: { forward: { hash: 'a', kernels: [name] } },
    };
    const record = `JSON.parse(formatRecord(${JSON.stringify(collected)}, '13.0.88'))`;
    expect(await evaluate(`readRecorded(${record}, ['forward'])`)).toEqual([
      { name, architecture: '80', registers: 249, stack: 16, spillStores: 8, spillLoads: 12 },
    ]);
  });

  const kernel = (columns: number[]) => ({ threads: 128, shared: 1024, 80: columns });
  const problems = (kernels: object, record?: object) =>
    evaluate(`problems(${JSON.stringify({ kernels, shapes: {} })}, ${JSON.stringify(record)}, '13.0.88')`);
  const recorded = (kernels: object, nvcc = '13.0.88') => ({ nvcc, architectures: [80], kernels });

  it('allows no spills where all has to stay in registers', async () => {
    const strict = ['forward_kernel<Float16, 64, Small>', 'backward_bias_kernel<BFloat16, 128>'];
    const lenient = ['forward_kernel<Float16, 192, Small>', 'backward_bias_kernel<Float32, 256>', 'gather_kernel'];
    const kernels = Object.fromEntries([...strict, ...lenient].map((name) => [name, kernel([255, 0, 4, 8])]));
    expect(await problems(kernels)).toEqual(strict.map((name) => `${name} on sm_80: spills 4 + 8 bytes`));
  });

  it('finds spills and stack that have grown since they were recorded', async () => {
    const record = { same: ['10 4/4 s8'], worse: ['10 4/4 s8'], gone: ['10'] };
    const kernels = { same: kernel([20, 8, 4, 4]), worse: kernel([10, 16, 4, 8]), added: kernel([1, 0, 0, 0]) };
    expect(await problems(kernels, recorded(record))).toEqual([
      'worse on sm_80: stack 16 bytes, 8 recorded',
      'worse on sm_80: spillLoads 8 bytes, 4 recorded',
      'added: not recorded',
      'gone: recorded, but gone',
    ]);
    expect(await problems(kernels, recorded(record, '13.1.0'))).toEqual([]);
  });

  it('finds too much shared memory', async () => {
    const kernels = { small: { ...kernel([1, 0, 0, 0]), shared: 100 * 1024 } };
    expect(await problems(kernels)).toEqual([`small: ${100 * 1024} bytes of shared memory, of at most ${99 * 1024}`]);
  });
});
