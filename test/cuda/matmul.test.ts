/** The kernels of matmul in several schedules, and bugs sown into copies of them: the emulator has to find each of them. */
import { type Bug, describeByElement, type Element } from './emulator/sown.js';

const bugs: readonly (Bug & { readonly element?: Element })[] = [
  {
    bug: 'a dropped barrier',
    file: 'sm80/matmul.cuh',
    find: '      ptx::sync_threads();  // the tiles have landed',
    replace: '      // the tiles have landed',
    report: /\.cuh:\d+: race/,
  },
  {
    bug: 'a missing wait',
    file: 'sm80/matmul.cuh',
    find: 'ptx::cp_async_wait<kSlots - 2>();',
    replace: '',
    report: /fragment\.cuh:\d+: read-of-copy-in-flight/,
  },
  {
    bug: 'sums that are read before they are staged',
    file: 'sm80/matmul.cuh',
    find: '      stage(strip);\n      sync_sharers();',
    replace: '      stage(strip);',
    report: /matmul\.cuh:\d+: race/,
  },
  {
    bug: 'rows written beyond the last one',
    file: 'sm80/matmul.cuh',
    find: 'if (i >= p_.rows || count <= 0) continue;',
    replace: 'if (count <= 0) continue;',
    report: /out-of-bounds|written beyond/,
  },
  {
    bug: 'four rows whose chunks share their banks',
    element: 'Float32',
    file: 'sm80/factor.cuh',
    find: 'return (row & 3) << 1 | (row >> 2 & 1);',
    replace: 'return row & 7;',
    report: /[1-9]\d* bank conflicts/,
  },
  {
    bug: 'elements read beyond the last one',
    file: 'sm80/factor.cuh',
    find: 'const bool inside = row < from.rows && column + k < from.columns;',
    replace: 'const bool inside = row < from.rows;',
    report: /factor\.cuh:\d+: global-out-of-bounds|C \[.*nan/,
  },
  {
    bug: 'a carried sum that is not brought back',
    file: 'sm80/matmul.cuh',
    find: 'if (carried) bring_back();',
    replace: '',
    report: /C \[0, \d+, \d+\] of 3 x 3 x 4141/,
  },
  {
    bug: 'parts of the inner dim that are left out',
    file: 'sm80/matmul.cuh',
    find: 'part < Tiles::kInnerWarps; ++part) {',
    replace: 'part < (Tiles::kInnerWarps + 1) / 2; ++part) {',
    report: /C \[.*in tile 2/,
  },
  {
    bug: 'an infinity that has been split',
    element: 'Float32',
    file: 'sm80/matmul.cuh',
    find: 'if (!infinite) return;',
    replace: 'return;',
    report: /C \[0, 5, \d+\].*nan instead of -?inf/,
  },
  {
    bug: 'a plain load of device memory',
    file: 'matrix.cuh',
    find: 'ptx::load_global(from + e * column)',
    replace: 'from[e * column]',
    report: /matrix\.cuh:\d+: (plain|unwrapped)/,
  },
];

describeByElement(
  'matmul kernels',
  'matmul.cpp',
  [
    ['Float16', '0', 'late'],
    ['Float16', '2', 'eager'],
    ['BFloat16', '1', 'late'],
    ['Float32', '3', 'late'],
  ],
  bugs,
);
