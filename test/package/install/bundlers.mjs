// Bundles made with esbuild, beside the package and moved away from it.
import { copyFileSync, mkdirSync, readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, join } from 'node:path';
import { ensure, root, Skipped } from './context.mjs';

async function bundle(context, name, options) {
  let esbuild;
  try {
    esbuild = createRequire(join(root, 'package.json'))('esbuild');
  } catch {
    throw new Skipped('esbuild is not installed');
  }
  const folder = context.copyInstalled(name);
  await esbuild.build({
    entryPoints: [join(folder, 'bundled.mjs')],
    outfile: join(folder, 'out', 'bundle.mjs'),
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    logLevel: 'silent',
    ...options,
  });
  return join(folder, 'out');
}

/** The bundle in a folder where the package is not installed. */
function moveAway(context, out) {
  const folder = join(context.work, `away-${basename(join(out, '..'))}`);
  mkdirSync(folder);
  for (const file of readdirSync(out)) copyFileSync(join(out, file), join(folder, file));
  return folder;
}

async function external(context) {
  const out = await bundle(context, 'external', { external: ['flashattn'] });
  context.tryIn(out, { program: 'bundle.mjs' });
}

async function whole(context) {
  const out = await bundle(context, 'whole', { minify: true });
  context.tryIn(out, { program: 'bundle.mjs' });
}

async function commonJs(context) {
  const outfile = join(context.work, 'commonjs', 'out', 'bundle.cjs');
  const out = await bundle(context, 'commonjs', { format: 'cjs', outfile });
  context.tryIn(out, { program: 'bundle.cjs' });
}

async function movedWithFiles(context) {
  const away = moveAway(context, await bundle(context, 'moved', {}));
  const dist = join(context.installed, 'node_modules', 'flashattn', 'dist');
  for (const file of readdirSync(dist).filter((name) => name.endsWith('.wasm')))
    copyFileSync(join(dist, file), join(away, file));
  const { reasons } = context.tryIn(away, { program: 'bundle.mjs' });
  ensure(/external/.test(reasons[0]?.hint), `the reason is ${JSON.stringify(reasons)}`);
}

async function movedAlone(context) {
  for (const format of ['esm', 'cjs']) {
    const file = format === 'esm' ? 'bundle.mjs' : 'bundle.cjs';
    const name = `alone-${format}`;
    const outfile = join(context.work, name, 'out', file);
    const away = moveAway(context, await bundle(context, name, { format, outfile }));
    const [{ code, message }] = context.ask(away, file);
    const helpful = code === 'ERR_DEVICE' && /external/.test(message) && /\.wasm files/.test(message);
    ensure(helpful, `${format}: the error is ${code}: ${message}`);
  }
}

export const bundlerChecks = [
  { name: 'esbuild with the package external', run: external },
  { name: 'esbuild, everything in one file', run: whole },
  { name: 'esbuild, to CommonJS', run: commonJs },
  { name: 'esbuild, moved away with the WebAssembly', run: movedWithFiles },
  { name: 'esbuild, moved away without it: says what to do', run: movedAlone },
];
