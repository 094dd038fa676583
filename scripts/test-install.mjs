// Installs the packed package in many ways and places, in folders that know nothing of this checkout, and tries it: on
// WebAssembly at least it has to work everywhere.
//
//   npm run test:install [-- --tarball <file>] [--only <text>]
//
// One line a check. Exit code 1 when one fails.
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { bundlerChecks } from '../test/package/install/bundlers.mjs';
import { Context, Skipped } from '../test/package/install/context.mjs';
import { npmChecks } from '../test/package/install/npm.mjs';
import { packageChecks } from '../test/package/install/packages.mjs';
import { platformChecks } from '../test/package/install/platforms.mjs';
import { processChecks } from '../test/package/install/processes.mjs';
import { runtimeChecks } from '../test/package/install/runtimes.mjs';
import { typescriptChecks } from '../test/package/install/typescript.mjs';

const checks = [
  ...npmChecks,
  ...packageChecks,
  ...platformChecks,
  ...runtimeChecks,
  ...typescriptChecks,
  ...bundlerChecks,
  ...processChecks,
];

async function attempt({ run }, context) {
  try {
    await run(context);
    return { result: 'pass' };
  } catch (error) {
    return { result: error instanceof Skipped ? 'skip' : 'FAIL', reason: error.message };
  }
}

const { values: flags } = parseArgs({ options: { tarball: { type: 'string' }, only: { type: 'string' } } });
const chosen = checks.filter(({ name }) => flags.only === undefined || name.includes(flags.only));
const counts = { pass: 0, skip: 0, FAIL: 0 };
const start = performance.now();
const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`;
const context = new Context(flags.tarball && resolve(flags.tarball));
try {
  for (const check of chosen) {
    const began = performance.now();
    const { result, reason } = await attempt(check, context);
    counts[result]++;
    console.log(`${result}  ${check.name}${reason ? `: ${reason}` : ''}  (${seconds(began)})`);
  }
} finally {
  context.dispose();
}
console.log(`${counts.pass} passed, ${counts.FAIL} failed, ${counts.skip} skipped  ${seconds(start)}`);
process.exitCode = counts.FAIL > 0 || counts.pass === 0 ? 1 : 0;
