// `npm audit` of all dependencies; any finding fails. Only a registry that does not answer such questions, a mirror for
// example, is let pass, with a warning.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const cwd = fileURLToPath(new URL('..', import.meta.url));
const { status, stdout, stderr } = spawnSync('npm', ['audit', '--json'], {
  cwd,
  encoding: 'utf8',
  shell: process.platform === 'win32',
});

/** The report, or nothing when npm printed something else. */
function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Whether the registry has no such endpoint or cannot be reached: neither says anything about the dependencies. */
function isUnavailable(report) {
  if (report?.vulnerabilities !== undefined) return false;
  const withoutEndpoint = [404, 405, 501].includes(report?.statusCode);
  return (
    withoutEndpoint || /\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT)\b/.test(report?.message ?? stderr)
  );
}

const report = parse(stdout);
if (status === 0) {
  console.log('npm audit found nothing');
} else if (isUnavailable(report)) {
  console.warn(`warning: not audited: ${report?.message ?? stderr.trim().split('\n')[0]}`);
} else {
  for (const { name, severity, via } of Object.values(report?.vulnerabilities ?? {}))
    console.error(`${severity}: ${name}: ${via.map((cause) => cause.title ?? cause).join('; ')}`);
  if (!report?.vulnerabilities) console.error(stdout, stderr);
  process.exitCode = 1;
}
