import { describe, expect, it } from 'vitest';
import { NativeBuild } from '../../../lib/backends/shared/nativeBuild.js';
import type { Operation } from '../../../lib/kernels/operation.js';
import { type Struct, struct } from '../../../lib/kernels/struct.js';

const pair = struct('Pair', { left: 'int32', right: 'int32' });
const operation = { name: 'add', struct: pair } as unknown as Operation<never>;
const same = 'operations copy add\nPair left@0:4 right@4:4\n';
const swapped = 'operations copy add\nPair right@0:4 left@4:4\n';

describe('native code of this version', () => {
  it('has a number for each operation', () => {
    const build = new NativeBuild('the build', same, [pair as unknown as Struct]);
    expect([build.numberOf(operation), build.numberOf(operation)]).toEqual([1, 1]);
    expect([build.has(operation), build.has({ name: 'subtract' })]).toEqual([true, false]);
  });
});

describe('native code of another version is refused', () => {
  const refusal = (message: RegExp) =>
    expect.objectContaining({ code: 'ERR_DEVICE', message: expect.stringMatching(message) });

  it('at once when a struct of its own has other fields', () => {
    const fields = /the build is of another version: its Pair has right@0:4, left@4:4 where .* left@0:4, right@4:4/;
    expect(() => new NativeBuild('the build', swapped, [pair as unknown as Struct])).toThrow(refusal(fields));
  });

  it('before an operation whose struct has other fields, each time', () => {
    const build = new NativeBuild('the build', swapped, []);
    for (let i = 0; i < 2; i++) expect(() => build.numberOf(operation)).toThrow(refusal(/its Pair has right@0:4/));
  });

  it('before an operation that it lacks', () => {
    const build = new NativeBuild('the build', same.replace('add', 'subtract'), []);
    expect(() => build.numberOf(operation)).toThrow(
      refusal(/^the build has no operation add: there is none for this device, or the build is an older one$/),
    );
  });
});
