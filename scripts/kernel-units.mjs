// The units that the kernels are compiled in: what each is made of, and what ptxas says of it.
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { basename, dirname, isAbsolute, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const run = promisify(execFile);
const mostOutput = 256 * 2 ** 20;

/** The compiler's command for each unit of the kernels, as CMake has written it. */
export function readUnits(folder) {
  const commands = JSON.parse(readFileSync(join(folder, 'compile_commands.json'), 'utf8'));
  return commands
    .filter(({ output, command }) => (output ?? command).includes('flashattn_kernels.dir'))
    .map(({ file, command, directory }) => {
      const words = command
        .match(/(?:[^\s"\\]|\\.|"(?:[^"\\]|\\.)*")+/g)
        .map((word) => word.replaceAll(/\\(.)|"/g, '$1'));
      // What goes before the compiler only keeps what it prints.
      const compiler = words.findIndex((word) => /^nvcc(\.exe)?$/.test(basename(word)));
      return { name: basename(file, '.cu'), file, directory, words: words.slice(compiler) };
    });
}

/** The words of a command with other ones in place of where it writes. */
function withOutput(words, output) {
  const at = words.indexOf('-o');
  return words.map((word, i) => (i === at + 1 ? output : word));
}

/** Strings and comments are read together: neither is looked for in the other. */
export const withoutComments = (text) =>
  text
    .replaceAll(/("(?:[^"\\\n]|\\.)*")|\/\/[^\n]*|\/\*.*?\*\//gs, (_, string) => string ?? ' ')
    .replaceAll(/[ \t]+/g, ' ')
    .replaceAll(/ ?\n\s*/g, '\n');

/** The files of the repository that the preprocessor reads for a unit, in its order; a toolkit's are known by version. */
async function filesOf({ words, file, directory }) {
  const [compiler, ...args] = withOutput(words, '-').filter((word, i, all) => word !== '-o' && all[i - 1] !== '-o');
  const preprocess = args
    .map((word) => (word === '-c' ? '-E' : word))
    .filter((word) => !/gencode|arch|^-x$|^cu$/.test(word));
  const { stdout } = await run(compiler, preprocess, { cwd: directory, maxBuffer: mostOutput });
  const named = [...stdout.matchAll(/^# \d+ "([^"<]+)"/gm)].map(([, path]) => resolve(directory, path));
  const own = [...new Set(named)].filter((path) => !/^\.\.|^(build|node_modules)\b/.test(relative(root, path)));
  return [...own, file].filter((path) => isAbsolute(path));
}

/** Of the sources without their comments, and of the options: the same in every folder and on every machine. */
async function hashOf(unit) {
  const hash = createHash('sha256');
  const options = unit.words.slice(1).filter((word) => /^-/.test(word) && !/^-(I|isystem|o|M)|=.*[\\/]/.test(word));
  hash.update(options.join(' '));
  for (const path of await filesOf(unit)) hash.update('\0').update(withoutComments(readFileSync(path, 'utf8')));
  return hash.digest('hex').slice(0, 32);
}

/** Runs `task` on each item, two at a time. */
async function forEach(items, task) {
  const queue = [...items];
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) await task(item);
  };
  await Promise.all([worker(), worker()]);
}

/** { [unit]: hash } */
export async function hashUnits(units) {
  const hashes = {};
  await forEach(units, async (unit) => {
    hashes[unit.name] = await hashOf(unit);
  });
  return hashes;
}

/**
 * { [unit]: what the compiler printed }. Kept by hash, so that a run that was interrupted goes on where it ended.
 *
 * @param toolkit its version: the hashes of sources do not know it
 */
export async function compileUnits(units, hashes, toolkit) {
  const logs = {};
  const folder = join(root, 'build', 'kernel-logs');
  mkdirSync(folder, { recursive: true });
  await forEach(units, async ({ name, words: [compiler, ...args], directory }) => {
    const kept = join(folder, `${name}-${toolkit}-${hashes[name]}.txt`);
    if (existsSync(kept)) {
      logs[name] = readFileSync(kept, 'utf8');
      return;
    }
    const start = performance.now();
    const { stdout, stderr } = await run(compiler, args, { cwd: directory, maxBuffer: mostOutput });
    logs[name] = `${stdout}${stderr}`;
    writeFileSync(`${kept}.part`, logs[name]);
    renameSync(`${kept}.part`, kept);
    console.log(`compiled ${name}  ${((performance.now() - start) / 1000).toFixed(0)} s`);
  });
  return logs;
}
