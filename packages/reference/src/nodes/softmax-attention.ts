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
    const seen = visible(position, window).map(entryOf);
    for (let head = 0; head < heads; head++) {
      const group = Math.floor((head * kvHeads) / heads) * entries;
      const rows = seen.map((entry) => (group + entry) * headDim); // offsets into keys and values
      const scores = rows.map((row) => node.scale * dot(query, head * headDim, cache.keys, row, headDim));
      const max = scores.reduce((a, b) => Math.max(a, b));
      let sum = 0;
      const target = (t * heads + head) * headDim;
      for (let n = 0; n < rows.length; n++) {
        const weight = Math.exp(scores[n]! - max);
        sum += weight;
        for (let c = 0; c < headDim; c++) out[target + c]! += weight * cache.values[rows[n]! + c]!;
      }
      for (let c = 0; c < headDim; c++) out[target + c]! /= sum;
    }
  }
  return out;
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
