import { createContext, runInContext, runInThisContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import { isTyped, typedArrayName } from '../../lib/base/arrays.js';
import {
  checkArray,
  checkBoolean,
  checkFloat32,
  checkFunction,
  checkInt32s,
  checkInteger,
  checkIntegers,
  checkNumber,
  checkOptions,
  checkWord,
  nearestWord,
} from '../../lib/base/check.js';
import { FlashAttnError, show } from '../../lib/base/errors.js';

const elsewhere = createContext({});
const foreign = <T>(code: string): T => runInContext(code, elsewhere) as T;

/** The message of the FlashAttnError that `f` throws. */
function messageOf(f: () => unknown): string {
  try {
    f();
  } catch (error) {
    expect(error).toBeInstanceOf(FlashAttnError);
    return (error as FlashAttnError).message;
  }
  throw new Error('nothing was thrown');
}

describe('numbers', () => {
  it('are integers within a range', () => {
    expect(checkInteger(3, 'n', 0, 3)).toBe(3);
    expect(Object.is(checkInteger(-0, 'n', 0), 0)).toBe(true);
    expect(messageOf(() => checkInteger(1.5, 'n', 0))).toBe('n is 1.5; it must be an integer >= 0');
    expect(messageOf(() => checkInteger('1', 'n', 0, 4))).toBe('n is "1"; it must be an integer from 0 to 4');
    expect(messageOf(() => checkInteger(2 ** 53, 'n'))).toContain('an integer, below 2^53 in size');
  });

  it('are finite, and fit float32 where kernels read them', () => {
    expect(checkNumber(0.5, 'p', 0, 1)).toBe(0.5);
    expect(messageOf(() => checkNumber(Number.NaN, 'p'))).toBe('p is NaN; it must be a finite number');
    expect(messageOf(() => checkNumber(2, 'p', 0, 1))).toBe('p is 2; it must be a finite number from 0 to 1');
    expect(checkFloat32(3.4e38, 'scale')).toBe(3.4e38);
    expect(checkFloat32(2 ** -149, 'scale')).toBe(2 ** -149);
    expect(checkFloat32(0, 'scale')).toBe(0);
    for (const bad of [3.5e38, -1e39, 1e-46, -1e-46])
      expect(messageOf(() => checkFloat32(bad, 'scale'))).toContain('a number that float32 can hold');
  });
});

describe('words, booleans and functions', () => {
  it('are told from all else', () => {
    expect(checkWord('b', 'x', ['a', 'b'])).toBe('b');
    expect(messageOf(() => checkWord('d', 'x', ['a', 'b', 'c']))).toBe(`x is "d"; it must be 'a', 'b' or 'c'`);
    expect(messageOf(() => checkWord(null, 'x', ['a']))).toBe(`x is null; it must be 'a'`);
    expect(messageOf(() => checkBoolean(1, 'x'))).toBe('x is 1; it must be true or false');
    expect(messageOf(() => checkFunction('f' as never, 'x'))).toBe('x is "f"; it must be a function');
  });
});

describe('lists', () => {
  it('are copies', () => {
    const given = [1, 2];
    const read = checkIntegers(given, 'x', 0);
    given[0] = -1;
    expect(read).toEqual([1, 2]);
  });

  it('have no holes', () => {
    expect(messageOf(() => checkIntegers(new Array(2), 'x', 0))).toBe('x[0] is undefined; it must be an integer >= 0');
    expect(messageOf(() => checkArray([true, 'no'], 'x', 'a list', checkBoolean))).toContain('x[1] is "no"');
  });

  it.each([
    '[1, 2]',
    'Int32Array.of(1, 2)',
    'Uint8Array.of(1, 2)',
    'BigInt64Array.of(1n, 2n)',
    'BigUint64Array.of(1n, 2n)',
  ])('may be %s, of this realm or another', (code) => {
    for (const list of [runInThisContext(code), foreign(code)]) {
      expect(checkIntegers(list, 'x', 0)).toEqual([1, 2]);
      expect(checkInt32s(list, 'x')).toEqual(Int32Array.of(1, 2));
    }
  });

  it('say which entry is wrong', () => {
    expect(messageOf(() => checkInt32s([1, 1.5], 'x'))).toBe(
      'x is [1, 1.5]; it must be an Int32Array or an array of 32-bit integers, and entry 1 is 1.5',
    );
    expect(messageOf(() => checkInt32s(BigInt64Array.of(2n ** 31n), 'x'))).toContain('entry 0 is 2147483648');
    expect(messageOf(() => checkIntegers(BigInt64Array.of(2n ** 60n), 'x'))).toContain('x[0] is 1152921504606846976n');
    expect(messageOf(() => checkInt32s(new Float32Array(1), 'x'))).toContain('x is Float32Array');
  });
});

describe('typed arrays', () => {
  it('are known by what they are, in every realm', () => {
    expect(isTyped(new Float32Array(1), 'Float32Array')).toBe(true);
    expect(isTyped(foreign('new Float32Array(1)'), 'Float32Array', 'Float64Array')).toBe(true);
    expect(isTyped(foreign('new Int8Array(1)'), 'Float32Array')).toBe(false);
    expect(typedArrayName({ [Symbol.toStringTag]: 'Float32Array' })).toBeUndefined();
    for (const other of [null, undefined, 1, 'x', [], {}]) expect(typedArrayName(other)).toBeUndefined();
  });
});

describe('options', () => {
  const options = (given: unknown) => () => checkOptions(given as { causal?: 1; window?: 1 }, ['causal', 'window']);
  it('name the one that was probably meant', () => {
    expect(options({ causal: 1 })).not.toThrow();
    expect(messageOf(options({ casual: 1 }))).toBe(
      'there is no option "casual"; did you mean "causal"? the options are causal, window',
    );
    expect(messageOf(options({ zebra: 1 }))).toBe('there is no option "zebra"; the options are causal, window');
    for (const bad of [null, undefined, 1, 'x', [], () => 1])
      expect(messageOf(options(bad))).toContain('it must be an object');
  });

  it.each([
    ['cu_seqlens_q', 'cuSeqlensQ'],
    ['is_causal', 'causal'],
    ['softCap', 'softcap'],
    ['klens', 'kLens'],
    ['sclae', 'scale'],
    ['q', undefined],
    ['something else', undefined],
    ['x'.repeat(1000), undefined],
  ])('%s means %s', (word, meant) => {
    const names = ['scale', 'causal', 'softcap', 'kLens', 'qLens', 'cuSeqlensQ', 'cuSeqlensK'];
    expect(nearestWord(word, names)).toBe(meant);
  });
});

describe('show', () => {
  it('shows anything, shortly', () => {
    const circle: unknown[] = [];
    circle.push(circle);
    const { proxy, revoke } = Proxy.revocable([], {});
    revoke();
    const values = [circle, proxy, Symbol('s'), 1n, -0, Object.create(null), new Array(1e6), 'x'.repeat(1e4)];
    expect(values.map(show).map((text) => text.length)).toEqual(values.map(() => expect.any(Number)));
    for (const value of values) expect(show(value).length).toBeLessThan(450);
    expect(show([1, [2, 'a']])).toBe('[1, [2, "a"]]');
    expect(show(new Float32Array(2))).toBe('Float32Array');
    expect(show(new Array(2))).toBe('[undefined, undefined]');
    expect(show(function name() {})).toBe('the function name');
  });
});
