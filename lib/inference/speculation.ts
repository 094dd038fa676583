import { checkInteger, checkOptions, mustBe } from '../base/check.js';
import { optionError } from '../base/errors.js';
import { type Distribution, tokenAt } from './sampling.js';

export interface LookupOptions {
  /** How many tokens are proposed. Default 10. */
  readonly count?: number;
  /** The most of the last tokens that are looked for. Default 3. */
  readonly longest?: number;
  /** The least. Default 1. */
  readonly shortest?: number;
}

/**
 * What may come next, without a model: what followed when the last tokens came before ("prompt lookup decoding", Saxena
 * 2023). Of all places before the end where the most of the last tokens stand (`longest` at most, `shortest` at least), the
 * last one counts; what it is followed by goes over into the proposal itself, so that repetitions are continued.
 *
 * @returns `count` tokens, or none where nothing was found
 * @throws ERR_OPTION
 */
export function lookupTokens(tokens: ArrayLike<number>, options: LookupOptions = {}): number[] {
  checkOptions(options, ['count', 'longest', 'shortest']);
  const count = checkInteger(options.count ?? 10, 'count', 0);
  const longest = checkInteger(options.longest ?? 3, 'longest', 1);
  const shortest = checkInteger(options.shortest ?? 1, 'shortest', 1, longest);
  const { length } = tokens;
  let best = shortest - 1;
  let place = 0;
  for (let end = length - 1; end > best && best < longest; end--) {
    let same = 0;
    while (same < longest && same < end && tokens[end - 1 - same] === tokens[length - 1 - same]) same++;
    if (same <= best) continue;
    best = same;
    place = end;
  }
  const proposal: number[] = [];
  if (place === 0) return proposal;
  for (let at = place; proposal.length < count; at++) proposal.push(at < length ? tokens[at] : proposal[at - length]);
  return proposal;
}

/** Tokens that may follow a sequence: a tree, of which a chain is the simplest. */
export interface Proposal {
  readonly tokens: readonly number[];
  /** By token the one that it follows, an earlier one; -1: the sequence itself. As in `masks.tree`. Default: a chain. */
  readonly parents?: readonly number[];
  /**
   * By token the distribution that it was drawn from: of those that follow the same one each on its own, or without those
   * drawn before, whose distribution is then without them too. Without: the tokens were chosen and not drawn.
   */
  readonly drawnFrom?: readonly Distribution[];
}

export interface Acceptance {
  /** Which of the proposed tokens are accepted, as indices, each following the one before. */
  readonly nodes: readonly number[];
  /** The token behind them, which costs nothing more. */
  readonly token: number;
}

/** The end of the sequence, which the first tokens follow. */
const root = -1;

function parentsOf({ tokens, parents, drawnFrom }: Proposal): readonly number[] {
  if (drawnFrom !== undefined && drawnFrom.length !== tokens.length)
    throw optionError(
      `drawnFrom has ${drawnFrom.length} entries; it must have one for each of ${tokens.length} tokens`,
    );
  if (parents === undefined) return tokens.map((_, at) => at - 1);
  if (parents.length !== tokens.length)
    throw optionError(`parents has ${parents.length} entries; it must have one for each of ${tokens.length} tokens`);
  for (const [at, parent] of parents.entries()) checkInteger(parent, `parents[${at}]`, root, at - 1);
  return parents;
}

/** Walks from the sequence's end as long as `choose` names one of the tokens that may follow. */
function walk(parents: readonly number[], choose: (node: number, followers: readonly number[]) => number | undefined) {
  const nodes: number[] = [];
  for (let node = root; ; ) {
    const followers: number[] = [];
    for (let at = node + 1; at < parents.length; at++) if (parents[at] === node) followers.push(at);
    const next = choose(node, followers);
    if (next === undefined) return nodes;
    nodes.push(next);
    node = next;
  }
}

/**
 * What a model that takes the most probable token accepts of a proposal: the longest path of tokens that it would have taken
 * itself. What is generated is the same as without a proposal.
 *
 * @param best the model's own token behind the sequence, and behind each of the proposed: [1 + tokens]
 * @throws ERR_OPTION
 */
export function acceptGreedy(proposal: Proposal, best: ArrayLike<number>): Acceptance {
  const { tokens } = proposal;
  const parents = parentsOf(proposal);
  if (best.length !== tokens.length + 1)
    throw optionError(`best has ${best.length} tokens; it must have one more than the ${tokens.length} proposed`);
  const nodes = walk(parents, (node, followers) => followers.find((at) => tokens[at] === best[node + 1]));
  return { nodes, token: best[(nodes.at(-1) ?? root) + 1] };
}

/** Where a token stands in a distribution; undefined where it cannot come. */
function placeOf({ tokens }: Distribution, token: number): number | undefined {
  let [first, end] = [0, tokens.length];
  while (first < end) {
    const middle = (first + end) >> 1;
    if (tokens[middle] < token) first = middle + 1;
    else end = middle;
  }
  return tokens[first] === token ? first : undefined;
}

function probability(distribution: Distribution, token: number): number {
  const place = placeOf(distribution, token);
  return place === undefined ? 0 : distribution.weights[place] / distribution.total;
}

/** What is left of `target` when a token that was drawn from `draft` is refused: max(0, target - draft), by its sum. */
function residual(target: Distribution, draft: Distribution): Distribution {
  const weights = new Float64Array(target.tokens.length);
  let total = 0;
  let at = 0;
  for (const [place, token] of target.tokens.entries()) {
    while (at < draft.tokens.length && draft.tokens[at] < token) at++;
    const drafted = draft.tokens[at] === token ? draft.weights[at] / draft.total : 0;
    weights[place] = Math.max(0, target.weights[place] / target.total - drafted);
    total += weights[place];
  }
  // Nothing is left where both are the same up to rounding.
  return total > 0 ? { tokens: target.tokens, weights, total } : target;
}

/** What is left of `target` when a token that was chosen is refused: all others. */
function without(target: Distribution, token: number): Distribution {
  const place = placeOf(target, token);
  if (place === undefined) return target;
  const weights = target.weights.slice();
  weights[place] = 0;
  return { tokens: target.tokens, weights, total: weights.reduce((sum, weight) => sum + weight, 0) };
}

/**
 * What a model that draws its tokens accepts of a proposal, such that what is generated is distributed as without one:
 * rejection sampling, with the next token drawn from what is left of the target where all are refused (Leviathan et al. 2023,
 * "Fast inference from transformers via speculative decoding"; Chen et al. 2023). Of several that follow the same token, one
 * after the other is tried against what is left (Miao et al. 2024, "SpecInfer").
 *
 * @param target the model's distribution behind one of the proposed tokens, by its index, or behind the sequence (-1); asked
 *   only along the path that is accepted
 * @param draw numbers from [0, 1), independent of those that the proposal was drawn with
 * @throws ERR_OPTION
 */
export function acceptSampled(
  proposal: Proposal,
  target: (node: number) => Distribution,
  draw: () => number,
): Acceptance {
  const { tokens, drawnFrom } = proposal;
  const parents = parentsOf(proposal);
  let left = target(root);
  const nodes = walk(parents, (_, followers) => {
    for (const at of followers) {
      const token = tokens[at];
      const draft = drawnFrom?.[at];
      const drafted = draft ? probability(draft, token) : 1;
      if (drafted === 0) throw mustBe(`tokens[${at}]`, token, `one that drawnFrom[${at}] has`);
      if (draw() * drafted < probability(left, token)) {
        left = target(at);
        return at;
      }
      left = draft ? residual(left, draft) : without(left, token);
    }
    return undefined;
  });
  return { nodes, token: tokenAt(left, draw()) };
}
