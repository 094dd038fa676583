import { writeFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { TokenBatches, type TokenBatchesOptions } from '../../lib/nn/batches.js';
import { openTokens, tokensOf } from '../../lib/nn/tokens.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';

const at = temporaryFolder();
/** Each token is its own position. */
const positions = (length: number) => tokensOf(Int32Array.from({ length }, (_, i) => i));

const walk = fc.record({
  length: fc.integer({ min: 2, max: 300 }),
  context: fc.integer({ min: 1, max: 8 }),
  batch: fc.integer({ min: 1, max: 7 }),
  seed: fc.maxSafeNat(),
  shuffle: fc.boolean(),
  count: fc.integer({ min: 1, max: 4 }),
});
const enough = walk.filter(({ length, context, count }) => Math.floor((length - 1) / context) >= count);

/** The first tokens of the windows of so many batches. */
function startsOf(batches: TokenBatches, times: number, context: number): number[] {
  const starts: number[] = [];
  for (let i = 0; i < times; i++) {
    const { inputs, targets } = batches.next();
    for (let row = 0; row < inputs.length; row += context) {
      const window = inputs.slice(row, row + context);
      const right = window.every((token, j) => token === window[0] + j && targets[row + j] === token + 1);
      if (!right) expect([...window, ...targets.slice(row, row + context)]).toBe('consecutive');
      starts.push(inputs[row]);
    }
  }
  return starts;
}

describe('TokenBatches', () => {
  it('gives each window once an epoch, in shards that share nothing', () => {
    fc.assert(
      fc.property(enough, ({ length, context, batch, seed, shuffle, count }) => {
        const tokens = positions(length);
        const windows = Math.floor((length - 1) / context);
        const perShard = Math.floor(windows / count);
        const epochs = 2;
        const shards = Array.from({ length: count }, (_, index) => {
          const batches = new TokenBatches({ tokens, context, batch, seed, shuffle, shard: { index, count } });
          expect(batches.windowsPerEpoch).toBe(perShard);
          return startsOf(batches, Math.ceil((epochs * perShard) / batch), context);
        });
        for (let epoch = 0; epoch < epochs; epoch++) {
          const seen = shards.flatMap((starts) => starts.slice(epoch * perShard, (epoch + 1) * perShard));
          expect(seen).toHaveLength(perShard * count);
          expect(new Set(seen).size).toBe(seen.length);
          expect(seen.every((start) => start % context === 0 && start + context < length)).toBe(true);
          // In order, shards take turns.
          if (!shuffle) expect(seen.toSorted((a, b) => a - b)).toEqual(seen.map((_, i) => i * context));
        }
      }),
    );
  });

  it('goes on from any state as if it had never stopped', () => {
    fc.assert(
      fc.property(enough, fc.nat({ max: 20 }), ({ length, context, batch, seed, shuffle, count }, before) => {
        const options: TokenBatchesOptions = {
          tokens: positions(length),
          context,
          batch,
          seed,
          shuffle,
          shard: { index: count - 1, count },
        };
        const [straight, resumed] = [new TokenBatches(options), new TokenBatches(options)];
        for (let i = 0; i < before; i++) straight.next();
        resumed.next();
        resumed.restore(JSON.parse(JSON.stringify(straight.state())));
        expect(resumed.epoch).toBe(straight.epoch);
        for (let i = 0; i < 10; i++) expect(resumed.next()).toEqual(straight.next());
        expect(resumed.state()).toEqual(straight.state());
      }),
    );
  });

  it('draws another order in each epoch and for each seed', () => {
    const order = (seed: number) => {
      const batches = new TokenBatches({ tokens: positions(101), context: 1, batch: 100, seed });
      return [batches.next(), batches.next()].map(({ inputs }) => [...inputs]);
    };
    const [[first, second], [other]] = [order(1), order(2)];
    const same = (a: number[], b: number[]) => a.filter((n, i) => n === b[i]).length;
    expect(same(first, second)).toBeLessThan(12);
    expect(same(first, other)).toBeLessThan(12);
    expect(
      same(
        first,
        first.toSorted((a, b) => a - b),
      ),
    ).toBeLessThan(12);
    expect(order(1)).toEqual([first, second]);
  });

  it('counts epochs', () => {
    const batches = new TokenBatches({ tokens: positions(9), context: 2, batch: 2 });
    expect(batches.epoch).toBe(0);
    for (let i = 0; i < 3; i++) batches.next();
    expect(batches.epoch).toBe(1.5);
  });

  it('gives the same of a file as of memory', () => {
    const ids = Uint16Array.from({ length: 70_000 }, (_, i) => (i * 31) % 50257);
    writeFileSync(at('t.bin'), new Uint8Array(ids.buffer));
    using tokens = openTokens(at('t.bin'));
    const options = { context: 64, batch: 8, seed: 3 };
    const [file, heap] = [
      new TokenBatches({ tokens, ...options }),
      new TokenBatches({ tokens: tokensOf(Int32Array.from(ids)), ...options }),
    ];
    for (let i = 0; i < 300; i++) {
      const [a, b] = [file.next(), heap.next()];
      expect(Buffer.from(a.inputs.buffer).equals(Buffer.from(b.inputs.buffer))).toBe(true);
      expect(Buffer.from(a.targets.buffer).equals(Buffer.from(b.targets.buffer))).toBe(true);
    }
  });

  it('gives the same batch again after an error', async () => {
    const tokens = positions(100);
    let fails = false;
    const flaky = {
      length: tokens.length,
      read: (begin: number, count: number) => {
        if (fails) throw new Error('mine');
        return tokens.read(begin, count);
      },
    };
    const options = { context: 3, batch: 4 };
    const [straight, failing] = [
      new TokenBatches({ tokens, ...options }),
      new TokenBatches({ tokens: flaky, ...options }),
    ];
    fails = true;
    expect(() => failing.next()).toThrow('mine');
    fails = false;
    expect(failing.next()).toEqual(straight.next());
  });

  const tokens = positions(10);
  const options = { tokens, batch: 2, context: 3 };
  const wrong: [string, object, RegExp][] = [
    ['fewer tokens than a window', { context: 10 }, /tokens has 10 tokens; a window of context 10 .* needs 11/],
    ['fewer windows than shards', { shard: { index: 0, count: 4 } }, /each of 4 shards needs 13/],
    ['a shard beyond its count', { shard: { index: 2, count: 2 } }, /shard\.index is 2; it must be .* from 0 to 1/],
    ['half a shard', { shard: { index: 0 } }, /shard\.count is undefined/],
    ['no batch', { batch: 0 }, /batch is 0/],
    ['no context', { context: 0 }, /context is 0/],
    ['no tokens', { tokens: undefined }, /tokens is undefined/],
    ['a seed that is none', { seed: 0.5 }, /seed is 0\.5/],
    ['a misspelt option', { suffle: true }, /did you mean "shuffle"/],
  ];
  it.each(wrong)('refuses %s', async (_, change, message) => {
    await expectFailure(() => new TokenBatches({ ...options, ...change }), 'ERR_OPTION', message);
  });

  it('refuses the state of another walk', async () => {
    const batches = new TokenBatches(options);
    const state = batches.state();
    for (const change of [{ tokens: 11 }, { context: 2 }, { seed: 1 }, { shuffle: false }, { shards: 2 }])
      await expectFailure(
        () => batches.restore({ ...state, ...change }),
        'ERR_OPTION',
        `state.${Object.keys(change)[0]} is`,
      );
    await expectFailure(() => batches.restore({ ...state, windows: -1 }), 'ERR_OPTION', 'state.windows is -1');
    await expectFailure(() => batches.restore(null as never), 'ERR_OPTION', 'state is null');
    new TokenBatches({ ...options, batch: 1 }).restore(state);
  });
});
