/** What an addon needs of the system that loads it, and that a release refuses what not every system has. */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';

interface Needs {
  readonly libraries: readonly string[];
  readonly glibc: ReadonlyMap<string, ReadonlySet<string>>;
}

interface Script {
  readonly releaseFloor: string;
  compareVersions(a: string, b: string): number;
  parseNeeds(text: string): Needs;
  readNeeds(path: string): Needs;
  judgeNeeds(
    needs: Needs,
    floor?: string,
  ): { readonly faults: readonly string[]; readonly newer: readonly string[]; readonly newest: string };
}

const script = new URL('../../scripts/addon-needs.mjs', import.meta.url).href;
const { compareVersions, judgeNeeds, parseNeeds, readNeeds, releaseFloor } = (await import(script)) as Script;

const canCompile = process.platform === 'linux' && ['gcc', 'readelf'].every((tool) => !spawnSync(tool).error);
const folder = mkdtempSync(join(tmpdir(), 'flashattn-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** A shared library of this source. */
function compile(name: string, source: string, ...flags: string[]): string {
  const path = join(folder, name);
  writeFileSync(`${path}.c`, source);
  execFileSync('gcc', ['-shared', '-fPIC', '-o', path, `${path}.c`, ...flags]);
  return path;
}

/** As readelf prints it. */
const printed = `
 0x0000000000000001 (NEEDED)             Shared library: [libm.so.6]
 0x0000000000000001 (NEEDED)             Shared library: [libcudart.so.13]
Version needs section '.gnu.version_r' contains 1 entry:
  000000: Version: 1  File: libc.so.6  Cnt: 3
  0x0010:   Name: GLIBC_2.34  Flags: none  Version: 4
  0x0020:   Name: GLIBC_2.9  Flags: none  Version: 3
  0x0030:   Name: GLIBC_ABI_DT_RELR  Flags: none  Version: 2
    11: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND dlsym@GLIBC_2.34 (4)
    12: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND pipe2@GLIBC_2.9 (3)`;

describe('what an addon needs', () => {
  it('is compared by numbers', () => {
    expect(['2.9', '2.2.5', '2.34', '2.28'].sort(compareVersions)).toEqual(['2.2.5', '2.9', '2.28', '2.34']);
  });

  it('is read from the output of readelf', () => {
    const needs = parseNeeds(printed);
    expect(needs.libraries).toEqual(['libm.so.6', 'libcudart.so.13']);
    expect(judgeNeeds(needs)).toEqual({
      faults: ['it needs the shared library libcudart.so.13, which not every system has'],
      newer: [
        `it needs glibc 2.34 (dlsym); a release may need ${releaseFloor} at most`,
        `it needs glibc ABI_DT_RELR (the way it is linked); a release may need ${releaseFloor} at most`,
      ],
      newest: '2.34',
    });
    expect(judgeNeeds(parseNeeds(printed), '2.40').newer).toHaveLength(1);
  });

  it.skipIf(!canCompile)('is read from files', () => {
    const plain = readNeeds(compile('plain.node', '#include <math.h>\ndouble f(double x) { return tan(x); }', '-lm'));
    expect(plain.libraries).toContain('libm.so.6');
    expect(judgeNeeds(plain)).toMatchObject({ faults: [], newer: [] });
    expect(() => readNeeds(join(folder, 'plain.node.c'))).toThrow('cannot be read');
    expect(() => readNeeds(join(folder, 'nowhere'))).toThrow('cannot be read');
  });

  it.skipIf(!canCompile)('may not be a CUDA library', () => {
    const stub = compile('libcuda.so.1', 'int cuInit(int x) { return x; }', '-Wl,-soname,libcuda.so.1');
    const linked = compile('cuda.node', 'int cuInit(int); int f(void) { return cuInit(0); }', stub);
    expect(judgeNeeds(readNeeds(linked)).faults).toEqual([
      'it needs the shared library libcuda.so.1, which not every system has',
    ]);
  });

  it.skipIf(!canCompile)('may not be a later glibc than the floor', () => {
    const source = '#include <string.h>\nvoid *f(void *to, void *from, unsigned n) { return memcpy(to, from, n); }';
    const path = compile('newer.node', source);
    const { newer, newest } = judgeNeeds(readNeeds(path), '2.1');
    expect(newer.join()).toMatch(/^it needs glibc 2\.\d+.* \(.*memcpy.*\); a release may need 2\.1 at most/);
    expect(compareVersions(newest, '2.1')).toBeGreaterThan(0);
  });
});
