// Checks that the C++ and CUDA files of the repository are formatted as .clang-format says; with --write formats them.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const extensions = ['h', 'cuh', 'cc', 'cpp', 'cu'];

const { status, stdout, stderr } = spawnSync('git', ['ls-files', ...extensions.map((name) => `*.${name}`)], {
  cwd: root,
  encoding: 'utf8',
});
if (status !== 0) throw new Error(`git ls-files failed: ${stderr}`);
// Listed files may be gone from the working tree.
const files = stdout.split('\n').filter((file) => file !== '' && existsSync(join(root, file)));

// The package finds its binary for this platform, where there is one; it runs through Node alone.
const program = createRequire(import.meta.url).resolve('clang-format');
const clangFormat = (args, stdio = 'inherit') => spawnSync(process.execPath, [program, ...args], { cwd: root, stdio });

if (clangFormat(['--version'], 'ignore').status !== 0) {
  console.log(`${files.length} C++ and CUDA files were not checked: clang-format does not run on this platform`);
} else {
  const mode = process.argv.includes('--write') ? ['-i'] : ['--dry-run', '--Werror'];
  process.exitCode = clangFormat([...mode, '--style=file', ...files]).status;
}
