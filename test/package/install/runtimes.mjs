// Other programs than Node that run packages with addons.
import { chmodSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { ensure, installTool, Skipped } from './context.mjs';

const here = `${process.platform}-${process.arch}`;

/** Computes on WebAssembly and on native threads; where the addon does not load there, it has to say why. */
function runs(name, { packages, program, args = [] }) {
  return {
    name,
    run(context) {
      const [tool, version] = packages[here] ?? [];
      if (tool === undefined) throw new Skipped(`${name} is not tried on ${here}`);
      const binary = join(installTool(context, tool, version), program);
      if (!existsSync(binary)) throw new Skipped(`${tool} brings no ${program}`);
      chmodSync(binary, 0o755);
      const report = (device, env) => {
        const { stdout } = context.run([...args, 'forward.mjs', device], { cwd: context.installed, node: binary, env });
        const { out, used } = JSON.parse(stdout);
        ensure(used === device && Math.abs(out - 1) < 1e-6, `${device} gave ${stdout}`);
      };
      report('wasm');
      const { stdout } = context.run([...args, 'consumer.mjs'], { cwd: context.installed, node: binary });
      const { device, reasons } = JSON.parse(stdout);
      if (device === 'cpu') report('cpu');
      else
        ensure(
          reasons.some((reason) => reason.device === 'cpu' && reason.hint),
          `there is no reason: ${stdout}`,
        );
    },
  };
}

/** Its npm package downloads the program from elsewhere when it is installed. */
const electron = {
  name: 'Electron',
  run() {
    throw new Skipped('the npm registry does not have its program');
  },
};

export const runtimeChecks = [
  runs('Bun', { packages: { 'linux-x64': ['@oven/bun-linux-x64-baseline', '1.4.4'] }, program: join('bin', 'bun') }),
  runs('Deno', {
    packages: { 'linux-x64': ['@deno/linux-x64-glibc', '2.9.6'] },
    program: 'deno',
    args: ['run', '--allow-all'],
  }),
  electron,
];
