// What a benchmark asks a library in a process of its own, and what the process answers:
//
//   { threads }                                                      -> { threads }, on how many it runs; before all others
//   { problem: [batch, queries, keys, heads, dim, causal], runs }    -> { milliseconds, out }
//
// and { reason } to what it cannot do. milliseconds is the mean of the runs, each with its result read; out, some numbers
// of the result, shows that all compute the same: element i of every input is sin(i), in float32.

/** So many runs at least and so long, until engines have compiled what they run often; no longer where single runs are long. */
const [warmUpRuns, warmUpMilliseconds, mostMilliseconds] = [4, 300, 1000];

const numbersToCompare = 16;

export function waves(length) {
  const values = new Float32Array(length);
  for (let i = 0; i < length; i++) values[i] = Math.sin(i);
  return values;
}

/** From all over the result, an odd number of elements apart: of many rows, heads and columns. */
export function sample(data) {
  const step = Math.floor(data.length / numbersToCompare) | 1;
  return Array.from({ length: numbersToCompare }, (_, i) => data[(i * step) % data.length]);
}

const reasonOf = (error) =>
  error?.code === 'ERR_MODULE_NOT_FOUND'
    ? 'is not installed: npm run bench:peers installs it'
    : `fails: ${String(error?.message ?? error)
        .split('\n')[0]
        .slice(0, 120)}`;

/** Sends what `answer` gives for each message, or the reason why it fails, until it is disconnected. */
export function answerWith(answer) {
  process.on('message', (message) =>
    answer(message)
      .catch((error) => ({ reason: reasonOf(error) }))
      .then((result) => process.send(result)),
  );
  process.on('disconnect', () => process.exit());
}

/**
 * Answers until it is disconnected. `start(threads)` loads the library and says on how many threads it runs;
 * `prepare(problem)` gives the function that computes it, to the numbers of its result.
 */
export function serve(start, prepare) {
  const prepared = new Map();

  async function prepareOnce(problem) {
    const name = String(problem);
    const known = prepared.get(name);
    if (known) return known;
    const run = await prepare(problem);
    const begin = performance.now();
    const spent = () => performance.now() - begin;
    for (let i = 0; (i < warmUpRuns || spent() < warmUpMilliseconds) && spent() < mostMilliseconds; i++) await run();
    prepared.set(name, run);
    return run;
  }

  async function measure(problem, runs) {
    const run = await prepareOnce(problem);
    const begin = performance.now();
    for (let i = 1; i < runs; i++) await run();
    const data = await run();
    return { milliseconds: (performance.now() - begin) / runs, out: sample(data) };
  }

  answerWith(async ({ threads, problem, runs }) =>
    threads ? { threads: await start(threads) } : measure(problem, runs),
  );
}
