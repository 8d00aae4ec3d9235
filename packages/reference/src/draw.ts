import type { Draw } from '@dsla/spec';

/** The token that a draw takes from logits [vocabulary]; -1 where one of them is not a number. */
export function drawToken(logits: Float64Array, draw: Draw): number {
  const { temperature, topK = logits.length, topP = 1, uniform } = draw;
  if (logits.some(Number.isNaN)) return -1;
  const most = logits.reduce((a, b) => Math.max(a, b));
  if (temperature === 0) return logits.indexOf(most);
  const weights = logits.map((logit) => Math.exp((logit - most) / temperature));
  const sorted = logits.slice().sort().reverse();
  const likely = keep(weights, logits, sorted[Math.min(topK, logits.length) - 1]!);
  const nucleus = topP === 1 ? likely : keep(likely, logits, leastOf(likely, logits, topP));
  let mass = 0;
  let last = 0;
  for (const [id, probability] of nucleus.entries()) {
    if (probability === 0) continue;
    last = id;
    mass += probability;
    if (mass > uniform) break; // else rounding left the sum a little below 1
  }
  return last;
}

/** Weights of the tokens whose logit is at least `least`, as probabilities; 0 for the others. */
function keep(weights: Float64Array, logits: Float64Array, least: number): Float64Array {
  const kept = weights.map((weight, id) => (logits[id]! >= least ? weight : 0));
  const total = kept.reduce((a, b) => a + b);
  return kept.map((weight) => weight / total);
}

/** Logit of the last of the most likely tokens that reach `topP` together. */
function leastOf(probabilities: Float64Array, logits: Float64Array, topP: number): number {
  const ids = Array.from(logits.keys()).sort((a, b) => logits[b]! - logits[a]!);
  let mass = 0;
  for (const id of ids) {
    mass += probabilities[id]!;
    if (mass >= topP) return logits[id]!;
  }
  return Number.NEGATIVE_INFINITY;
}
