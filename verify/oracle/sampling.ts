/** What a token is drawn from, in float64 and by sorting everything: probabilities by token. */
export interface SamplingRules {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
}

export function probabilities(
  logits: ArrayLike<number>,
  prompt: readonly number[],
  generated: readonly number[],
  rules: SamplingRules,
): Float64Array {
  const { temperature = 1, topK = logits.length, topP = 1, minP = 0, repetitionPenalty = 1 } = rules;
  const { presencePenalty = 0, frequencyPenalty = 0 } = rules;
  const scores = Array.from({ length: logits.length }, (_, token) => {
    let score = logits[token] as number;
    // The library keeps penalised logits in float32.
    if (prompt.includes(token) || generated.includes(token))
      score = Math.fround(score > 0 ? score / repetitionPenalty : score * repetitionPenalty);
    const count = generated.filter((each) => each === token).length;
    return count > 0 ? Math.fround(score - frequencyPenalty * count - presencePenalty) : score;
  });
  const order = scores.map((_, token) => token).sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
  const result = new Float64Array(logits.length);
  if (temperature === 0) {
    result[order[0] as number] = 1;
    return result;
  }
  const softmax = (tokens: readonly number[]) => {
    const most = Math.max(...tokens.map((token) => scores[token] as number));
    const powers = tokens.map((token) => Math.exp(((scores[token] as number) - most) / temperature));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers.map((power) => power / sum);
  };
  let kept = order.slice(0, topK);
  const likely = softmax(kept);
  if (topP < 1) {
    let [count, sum] = [0, 0];
    while (count < kept.length && sum < topP) sum += likely[count++] as number;
    kept = kept.slice(0, count);
  }
  const first = likely[0] as number;
  kept = kept.filter((_, at) => (likely[at] as number) >= minP * first);
  softmax(kept).forEach((probability, at) => {
    result[kept[at] as number] = probability;
  });
  return result;
}

/** Pearson's statistic of counts against probabilities; where nothing may come, anything is infinitely much. */
export function chiSquare(
  counts: ArrayLike<number>,
  expected: ArrayLike<number>,
): { statistic: number; degrees: number } {
  const total = Array.from(counts).reduce((a, b) => a + b, 0);
  let [statistic, degrees] = [0, -1];
  for (let at = 0; at < expected.length; at++) {
    const wanted = total * (expected[at] as number);
    const got = counts[at] as number;
    if (wanted === 0 && got > 0) return { statistic: Number.POSITIVE_INFINITY, degrees: expected.length };
    if (wanted === 0) continue;
    statistic += (got - wanted) ** 2 / wanted;
    degrees++;
  }
  return { statistic, degrees };
}

/** What the statistic exceeds with a probability of 1e-6: Wilson and Hilferty (1931). */
export const chiSquareLimit = (degrees: number): number =>
  degrees * (1 - 2 / (9 * degrees) + 4.753424 * Math.sqrt(2 / (9 * degrees))) ** 3;
