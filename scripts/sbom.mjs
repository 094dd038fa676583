// Writes build/sbom.json: what the package contains and needs at run time, in CycloneDX, from the lockfile. Fails when
// it is not what package.json says.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const file = join(root, 'build', 'sbom.json');
const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));

const args = ['sbom', '--sbom-format', 'cyclonedx', '--sbom-type', 'library', '--omit', 'dev', '--package-lock-only'];
const { status, stdout, stderr } = spawnSync('npm', args, {
  cwd: root,
  encoding: 'utf8',
  shell: process.platform === 'win32',
});
if (status !== 0) {
  console.error(stderr);
  process.exit(1);
}
const sbom = JSON.parse(stdout);
// npm names the package after its folder.
sbom.metadata.component.name = manifest.name;

const problems = [];
const expect = (condition, message) => condition || problems.push(message);
expect(sbom.bomFormat === 'CycloneDX' && /^1\.\d$/.test(sbom.specVersion), 'it is not a CycloneDX document');
expect(/^urn:uuid:[0-9a-f-]{36}$/.test(sbom.serialNumber), 'it has no serial number');
expect(sbom.metadata.component.version === manifest.version, `it is of version ${sbom.metadata.component.version}`);
const direct = sbom.components.map(({ name, version }) => `${name}@${version}`).sort();
const wanted = Object.entries(manifest.dependencies ?? {}).map(([name, version]) => `${name}@${version}`);
expect(`${direct}` === `${wanted.sort()}`, `it lists ${direct}; package.json has ${wanted}`);
for (const { name, purl, hashes, licenses } of sbom.components) {
  expect(purl?.startsWith('pkg:npm/'), `${name} has no package URL`);
  expect(
    hashes?.some(({ alg }) => alg === 'SHA-512'),
    `${name} has no SHA-512`,
  );
  expect(licenses?.length > 0, `${name} has no licence`);
}
const references = new Set([sbom.metadata.component, ...sbom.components].map((component) => component['bom-ref']));
for (const { ref, dependsOn } of sbom.dependencies)
  for (const name of [ref, ...dependsOn]) expect(references.has(name), `${name} is not a component`);

mkdirSync(dirname(file), { recursive: true });
writeFileSync(file, `${JSON.stringify(sbom, null, 2)}\n`);
console.log(`${relative(root, file)}: ${wanted.join(', ') || 'no dependencies at run time'}`);
for (const problem of problems) console.error(`${relative(root, file)}: ${problem}`);
if (problems.length > 0) process.exitCode = 1;
