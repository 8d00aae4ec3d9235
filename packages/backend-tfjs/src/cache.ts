import { DslaError } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';

// Keys and values (and gate logits) of earlier tokens, [X, entries, width], token by token along axis 1.

/** Where the columns that `extendRing` returns stand: first `sinks` at positions 0, 1, ..., then the others from `start` on. */
export interface Geometry {
  readonly past: number;
  readonly count: number;
  readonly window: number;
  readonly sinks: number;
  readonly start: number;
}

/** What queries past, past + 1, ... (`count` of them) can see of a ring, and which tokens leave it meanwhile. */
export function ringGeometry(past: number, count: number, window: number, sinks: number): Geometry {
  const end = past + count;
  return { past, count, window, sinks: Math.min(sinks, end), start: Math.min(Math.max(sinks, past - window), end) };
}

/**
 * The sinks, then the tokens from `start` to the last of this step. old [X, sinks + window, width] is a ring as in kvState
 * (nothing in it is read that was not written), fresh [X, count, width].
 */
export function extendRing(old: Tensor | undefined, fresh: Tensor, at: Geometry, allSinks: number): Tensor {
  const { past, count, window, start } = at;
  const oldSinks = Math.min(allSinks, past);
  const first = allSinks + ((start - allSinks) % window);
  const held = Math.max(0, past - start); // of the window
  const unwrapped = Math.min(held, allSinks + window - first);
  return join([
    old && span(old, 0, oldSinks),
    span(fresh, 0, at.sinks - oldSinks),
    old && span(old, first, first + unwrapped),
    old && span(old, allSinks, allSinks + held - unwrapped),
    span(fresh, Math.max(start, past) - past, count),
  ])!;
}

/** The ring after the step, from what extendRing returned; zeros where no token has been yet. */
export function nextRing(columns: Tensor, { past, count, window, sinks, start }: Geometry, allSinks: number): Tensor {
  const end = past + count;
  const size = Math.max(0, Math.min(window, end - allSinks));
  const from = end - size;
  const column = (token: number) => sinks + token - start;
  const turn = size === window ? (from - allSinks) % window : 0; // entry of the oldest token
  const wrap = from + window - turn; // first token of entry 0
  const empty = (entries: number) =>
    entries > 0 ? tf.zeros([columns.shape[0]!, entries, columns.shape[2]!]) : undefined;
  return join([
    span(columns, 0, sinks),
    empty(allSinks - sinks),
    size === window ? span(columns, column(wrap), column(end)) : undefined,
    size > 0 ? span(columns, column(from), column(Math.min(wrap, end))) : undefined,
    empty(window - size),
  ])!;
}

/** A cache that keeps all tokens grows by this many at a time. */
const page = 256;

/** The first `past` tokens of a cache that keeps all. @throws DslaError E_INPUT when it holds fewer. */
export function heldTokens(old: Tensor | undefined, past: number, where: string): Tensor | undefined {
  const held = old?.shape[1] ?? 0;
  if (held < past) {
    throw new DslaError('E_INPUT', {
      where,
      rule: `the state must hold the ${past} tokens that the row calls past`,
      got: held,
      cure: 'Run or import these tokens first.',
    });
  }
  return old && span(old, 0, past);
}

/** The cache after a step: `seen` [X, past + count, width], then what was there or room, up to `capacity`. */
export function nextCache(old: Tensor | undefined, seen: Tensor, capacity: number): Tensor {
  const [x, end, width] = seen.shape as [number, number, number];
  const held = old?.shape[1] ?? 0;
  const room = Math.min(capacity, Math.ceil(end / page) * page) - Math.max(end, held);
  return join([seen, old && span(old, end, held), room > 0 ? tf.zeros([x, room, width]) : undefined])!;
}

/** Entries from..to of x along axis 1; nothing where there are none. */
export function span(x: Tensor, from: number, to: number): Tensor | undefined {
  if (to <= from) return undefined;
  if (from === 0 && to === x.shape[1]) return x;
  return tf.slice(x, [0, from, 0], [-1, to - from, -1]);
}

/** All that is there, along axis 1. */
export function join(pieces: readonly (Tensor | undefined)[]): Tensor | undefined {
  const there = pieces.filter((piece) => piece !== undefined);
  return there.length > 1 ? tf.concat(there, 1) : there[0];
}
