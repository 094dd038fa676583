import { around } from './around.js';
import { dense } from './dense.js';
import type { SystemFamily } from './entry.js';
import { heads } from './heads.js';
import { keys } from './keys.js';
import { linear } from './linear.js';
import { lowRank } from './lowRank.js';
import { memory } from './memory.js';
import { patterns } from './patterns.js';
import { positions } from './positions.js';
import { quantised } from './quantised.js';
import { regrouped } from './regrouped.js';
import { routed } from './routed.js';

/** Every system of the package, by families. */
export const families: readonly SystemFamily[] = [
  dense,
  patterns,
  regrouped,
  linear,
  routed,
  lowRank,
  memory,
  heads,
  keys,
  positions,
  quantised,
  around,
];
