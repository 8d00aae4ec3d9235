import type { NodeOf, Rope } from '@dsla/spec';

/** Query and keys of one layer and window, before rotation: q [T, heads * hd], k [T, kvHeads * hd]. */
export interface QueryKey {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly tokens: number;
}

/**
 * Entropy in nats of the last query's attention over all tokens, mean over the heads: arXiv 2506.09316 eq. 11, with the minus
 * sign that is missing in print. At most ln T.
 */
export function lastRowEntropy({ q, k, tokens }: QueryKey, node: NodeOf<'softmaxAttention'>): number {
  const { heads, kvHeads, headDim, scale, rope } = node;
  const last = tokens - 1;
  let sum = 0;
  for (let head = 0; head < heads; head++) {
    const query = rotated(q, last * heads + head, headDim, last, rope);
    const group = Math.floor((head * kvHeads) / heads);
    const scores = Float64Array.from({ length: tokens }, (_, token) => {
      const key = rotated(k, token * kvHeads + group, headDim, token, rope);
      return scale * key.reduce((dot, value, i) => dot + value * query[i]!, 0);
    });
    sum += entropy(scores);
  }
  return sum / heads;
}

/** Of softmax(scores). */
function entropy(scores: Float64Array): number {
  const most = scores.reduce((a, b) => Math.max(a, b));
  const powers = scores.map((score) => Math.exp(score - most));
  const total = powers.reduce((a, b) => a + b);
  // -sum p ln p with ln p = score - most - ln total
  return Math.log(total) - powers.reduce((sum, power, i) => sum + power * (scores[i]! - most), 0) / total;
}

/** Vector number `index` of `headDim` values, turned to its position: pairs (i, i + rotaryDim / 2). */
function rotated(
  values: Float32Array,
  index: number,
  headDim: number,
  position: number,
  rope: Rope | undefined,
): Float64Array {
  const out = Float64Array.from(values.subarray(index * headDim, (index + 1) * headDim));
  if (!rope) return out;
  const half = rope.rotaryDim / 2;
  for (let i = 0; i < half; i++) {
    const [cos, sin] = [Math.cos(position * rope.frequencies[i]!), Math.sin(position * rope.frequencies[i]!)];
    const [a, b] = [out[i]!, out[i + half]!];
    out[i] = a * cos - b * sin;
    out[i + half] = b * cos + a * sin;
  }
  return out;
}
