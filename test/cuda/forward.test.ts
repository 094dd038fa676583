/** The forward kernel in several schedules, and bugs sown into copies of it: the emulator has to find each of them. */
import { type Bug, describeByElement, type Element } from './emulator/sown.js';

const bugs: readonly (Bug & { readonly element?: Element })[] = [
  {
    bug: 'a dropped barrier',
    file: 'sm80/forward.cuh',
    find: '    ptx::cp_async_wait<Tiles::kSlots - 2>();\n    ptx::sync_threads();',
    replace: '    ptx::cp_async_wait<Tiles::kSlots - 2>();',
    report: /\.cuh:\d+: race/,
  },
  {
    bug: 'a missing wait',
    file: 'sm80/forward.cuh',
    find: '    ptx::cp_async_wait<Tiles::kSlots - 2>();\n    ptx::sync_threads();',
    replace: '    ptx::sync_threads();',
    report: /fragment\.cuh:\d+: read-of-copy-in-flight/,
  },
  {
    bug: 'tiles without a swizzle',
    file: 'tile.cuh',
    find: 'return (row >> kSwizzleShift) & kSwizzleMask;',
    replace: 'return row * 0;',
    report: /[1-9]\d* bank conflicts/,
  },
  {
    bug: 'a swizzle that readers forget',
    file: 'tile.cuh',
    find: '(origin ^ static_cast<uint32_t>((c & kMask) * kChunkBytes))',
    replace: '(origin + static_cast<uint32_t>((c & kMask) * kChunkBytes))',
    report: /out \[|out-of-bounds/,
  },
  {
    bug: 'rows read beyond the last one',
    file: 'tile.cuh',
    find: 'ptx::cp_async<16>(tile.chunk(r, c), bytes ? source : from.data, bytes);',
    replace: 'ptx::cp_async<16>(tile.chunk(r, c), source, bytes ? bytes : columns * TileType::kElementBytes);',
    report: /tile\.cuh:\d+: global-out-of-bounds/,
  },
  {
    bug: 'rows of little alignment read beyond the last one',
    file: 'tile.cuh',
    find: 'const int count = max_of(0, min_of(bytes - part, Size));',
    replace: 'const int count = bytes ? max_of(0, min_of(bytes - part, Size)) : Size;',
    report: /tile\.cuh:\d+: global-out-of-bounds/,
  },
  {
    bug: 'a hidden NaN that is not repaired',
    file: 'sm80/forward.cuh',
    find: 'if (ptx::ballot(hid_ && has_nan()))',
    replace: 'if (ptx::ballot(false))',
    report: /out \[0, \d+, 0, 0\]: -?nan/,
  },
  {
    bug: 'rows repaired before they are written',
    file: 'sm80/repair_forward.cuh',
    find: 'ptx::sync_warp();',
    replace: '',
    report: /repair_forward\.cuh:\d+: global-race/,
  },
  {
    bug: 'a plain store to device memory',
    file: 'sm80/forward.cuh',
    find: 'ptx::store_global(p_.lse + head_.lse_row(first_query_ + tile_row), row.lse);',
    replace: 'p_.lse[head_.lse_row(first_query_ + tile_row)] = row.lse;',
    report: /forward\.cuh:\d+: (plain|unwrapped)/,
  },
  {
    bug: 'a carried sum that is not brought back',
    element: 'Float32',
    file: 'carry.cuh',
    find: 'sum += ptx::load_global(data + column) * factor;',
    replace: 'sum += 0.0f * factor;',
    report: /out \[0, \d+, 0, \d+\]/,
  },
  {
    bug: 'a sum that goes on after it has been carried',
    element: 'Float32',
    file: 'carry.cuh',
    find: 'sum = 0.0f;',
    replace: '',
    report: /out \[0, \d+, 0, \d+\]/,
  },
  {
    bug: 'a carried sum that a new maximum leaves as it is',
    element: 'Float32',
    file: 'carry.cuh',
    find: 'ptx::load_global(data + column) * factor + sum',
    replace: 'ptx::load_global(data + column) + (factor > 0.0f ? sum : 0.0f)',
    report: /out \[0, 0, 0, \d+\]/,
  },
];

describeByElement(
  'forward kernel',
  'forward.cpp',
  [
    ['Float16', '0', 'late'],
    ['Float16', '1', 'late'],
    ['Float16', '2', 'eager'],
    ['Float16', '3', 'late'],
    ['Float32', '2', 'late'],
  ],
  bugs,
);
