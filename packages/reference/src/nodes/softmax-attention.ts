import { type NodeOf, ringIndex } from '@dsla/spec';
import { rotated } from '../rope.js';
import { dot } from './linear.js';

type Settings = Pick<NodeOf<'softmaxAttention'>, 'heads' | 'kvHeads' | 'headDim' | 'scale' | 'rope' | 'window'>;

export interface Cache {
  /** [kvHeads, entries, headDim], rotated. */
  readonly keys: Float64Array;
  /** [kvHeads, entries, headDim] */
  readonly values: Float64Array;
}

/**
 * Causal softmax attention of one row: q [count, heads*headDim], k and v [count, kvHeads*headDim], the tokens `past`,
 * past + 1, ... of the row. Returns [count, heads*headDim] and appends to the cache.
 */
export function softmaxAttention(
  node: Settings,
  q: Float64Array,
  k: Float64Array,
  v: Float64Array,
  cache: Cache,
  past: number,
): Float64Array {
  const { heads, kvHeads, headDim, window } = node;
  const entries = cache.keys.length / (kvHeads * headDim);
  const out = new Float64Array(q.length);
  for (let t = 0; t * heads * headDim < q.length; t++) {
    const position = past + t;
    const entryOf = (j: number) => (window ? ringIndex(j, window.size, window.sinks) : j);
    const key = rotated(tokenOf(k, t, kvHeads * headDim), headDim, node.rope, position);
    store(cache.keys, key, entryOf(position), entries, headDim);
    store(cache.values, tokenOf(v, t, kvHeads * headDim), entryOf(position), entries, headDim);

    const query = rotated(tokenOf(q, t, heads * headDim), headDim, node.rope, position);
    const seen = Int32Array.from(visible(position, window).map(entryOf));
    for (let head = 0; head < heads; head++) {
      const group = Math.floor((head * kvHeads) / heads) * entries;
      const offsets = seen.map((entry) => (group + entry) * headDim);
      const { weights, sum } = softmaxWeights(
        query.subarray(head * headDim, (head + 1) * headDim),
        cache.keys,
        offsets,
        node.scale,
      );
      const target = out.subarray((t * heads + head) * headDim, (t * heads + head + 1) * headDim);
      addWeighted(target, cache.values, offsets, weights);
      for (let c = 0; c < headDim; c++) target[c]! /= sum;
    }
  }
  return out;
}

/** e^(s - m) and their sum, s = scale * query . key, m = max s, over the keys [headDim] at the given offsets. */
export function softmaxWeights(
  query: Float64Array,
  keys: Float64Array,
  offsets: Int32Array,
  scale: number,
): { readonly weights: Float64Array; readonly sum: number } {
  const weights = new Float64Array(offsets.length);
  let max = Number.NEGATIVE_INFINITY;
  for (let n = 0; n < offsets.length; n++) {
    weights[n] = scale * dot(query, 0, keys, offsets[n]!, query.length);
    max = Math.max(max, weights[n]!);
  }
  let sum = 0;
  for (let n = 0; n < offsets.length; n++) {
    weights[n] = Math.exp(weights[n]! - max);
    sum += weights[n]!;
  }
  return { weights, sum };
}

/** total [headDim] += sum of weight * value over the values at the given offsets. */
export function addWeighted(
  total: Float64Array,
  values: Float64Array,
  offsets: Int32Array,
  weights: Float64Array,
): void {
  for (let n = 0; n < offsets.length; n++) {
    const weight = weights[n]!;
    const row = offsets[n]!;
    for (let c = 0; c < total.length; c++) total[c]! += weight * values[row + c]!;
  }
}

/** The tokens that the query at `position` sees exactly: its window and the sinks, or all. */
export function visible(position: number, window?: { readonly size: number; readonly sinks: number }): number[] {
  const tokens: number[] = [];
  const first = window ? position - window.size + 1 : 0;
  for (let j = 0; j < Math.min(window?.sinks ?? 0, first); j++) tokens.push(j);
  for (let j = Math.max(first, 0); j <= position; j++) tokens.push(j);
  return tokens;
}

/** Token t of x [count, width]. */
export function tokenOf(x: Float64Array, t: number, width: number): Float64Array {
  return x.subarray(t * width, (t + 1) * width);
}

/** Writes x [kvHeads*headDim] at `entry` of every head of a [kvHeads, entries, headDim] cache. */
export function store(cache: Float64Array, x: Float64Array, entry: number, entries: number, headDim: number): void {
  for (let head = 0; head * headDim < x.length; head++)
    cache.set(x.subarray(head * headDim, (head + 1) * headDim), (head * entries + entry) * headDim);
}

/** Reads what `store` wrote: [kvHeads*headDim]. */
export function load(cache: Float64Array, entry: number, entries: number, headDim: number): Float64Array {
  const heads = cache.length / (entries * headDim);
  const x = new Float64Array(heads * headDim);
  for (let head = 0; head < heads; head++) {
    const from = (head * entries + entry) * headDim;
    x.set(cache.subarray(from, from + headDim), head * headDim);
  }
  return x;
}
