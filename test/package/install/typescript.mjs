// Consumers in TypeScript, with none of its checks turned off.
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { root } from './context.mjs';

const tsc = join(createRequire(join(root, 'package.json')).resolve('typescript/package.json'), '..', 'bin', 'tsc');

const compiles = (name, file, flags) => ({
  name: `TypeScript, ${name}`,
  run(context) {
    const strict = ['--strict', '--noEmit', '--target', 'es2022', '--lib', 'es2023,esnext.disposable'];
    // No --skipLibCheck: the declarations of the package are compiled too.
    context.run([tsc, ...strict, ...flags, file], { cwd: context.installed });
  },
});

export const typescriptChecks = [
  compiles('moduleResolution node16', 'consumer.mts', ['--module', 'node16', '--moduleResolution', 'node16']),
  compiles('moduleResolution bundler', 'consumer.mts', ['--module', 'esnext', '--moduleResolution', 'bundler']),
  compiles('CommonJS that requires the package', 'consumer.cts', ['--module', 'nodenext']),
];
