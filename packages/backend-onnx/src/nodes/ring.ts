import { ringIndex } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { blocksOf, floats, ints, reshapeTo, tokenControl } from './blocks.js';

// A ring of sinks + window entries, laid out as kvState says, and the exact attention over what it holds. Indices and masks
// are made on the host: layers of equal window and sinks share them. Where an index has no token it names one that exists,
// under a mask, because memory that nothing wrote may hold anything.
//
// Many tokens are joined to the ring, [ring, new tokens], from which blocks of queries, the states and the next ring gather.

export interface Ring {
  readonly window: number;
  readonly sinks: number;
}

export type Place = { readonly past: number; readonly count: number };

const entriesOf = ({ window, sinks }: Ring): number => sinks + window;
export const named = ({ window, sinks }: Ring, what: string): string => `ring ${sinks}+${window} ${what}`;

/** Index of token j in [ring, new tokens]. */
function indexOf(ring: Ring, { past }: Place, token: number): number {
  return token < past ? ringIndex(token, ring.window, ring.sinks) : entriesOf(ring) + token - past;
}

/** The token that enters the states at query t: the one that has just left the window. */
export function leavingToken({ window, sinks }: Ring, { past, count }: Place, t: number): number | undefined {
  const token = past + t - window;
  return t < count && token >= sinks ? token : undefined;
}

/** What of the ring's content the attention and the states read. */
export interface Kept {
  /** What the queries may see, [..., n, seen, ...]. */
  seen(): Ref;
  /** The tokens that leave the window, [..., n, C, ...]; anything where there is none. */
  leaving(): Ref;
}

/** A part of the state that is a ring along `axis`. */
export interface RingPart {
  readonly ring: Ring;
  readonly state: string;
  readonly part: number;
  readonly axis: 0 | 1;
  readonly dims: readonly number[];
}

/** Takes new tokens into a ring: x, of the type that the part is held in, has T entries along its axis; so is what is kept. */
export function keep(lowering: Lowering, { ring, state, part, axis, dims }: RingPart, x: Ref): Kept {
  const { graph, control } = lowering;
  // The ring before the new tokens without Concat, which copies sizes from host memory on CUDA, so that no run with it could be recorded.
  const entries = entriesOf(ring);
  const free = graph.op('Pad', [x, graph.ints([entries, 0]), '', graph.ints([axis])]);
  const first = graph.reshape(graph.ints(Array.from({ length: entries }, (_, entry) => entry)), [-1, 1]);
  const places = graph.op('Expand', [first, graph.ints(dims)]);
  const all = graph.op('ScatterElements', [free, places, lowering.past(state, part, dims)], { axis });
  const pick = (index: Control): Ref => graph.op('Gather', [all, control(index)], { axis });
  lowering.present(state, part, pick(nextEntries(ring)), dims);
  const token = (t: number, row: Place): number => leavingToken(ring, row, t) ?? row.past;
  return {
    seen: () => pick(seenIndices(ring)),
    leaving: () => pick(tokenControl(named(ring, 'leaving'), (t, row) => indexOf(ring, row, token(t, row)))),
  };
}

/** q [kvHeads, n, group, C, hd], keys [kvHeads, n, seen, hd] -> masked scores [kvHeads, n, group * C, seen]. */
export function exactScores(
  lowering: Lowering,
  ring: Ring,
  q: Ref,
  keys: Ref,
  { kvHeads, group, headDim, scale }: Heads,
): Ref {
  const { graph, control } = lowering;
  // Equal batches: CUDA's products of others cannot be recorded.
  const scores = graph.matmul(graph.reshape(q, [0, 0, -1, headDim]), keys, { transB: true, alpha: scale });
  const byQuery = reshapeTo(lowering, scores, [kvHeads, 'blocks', group, 'size', -1]);
  const apart = graph.op('Abs', [graph.op('Sub', [control(seenTokens(ring)), control(oldestTokens(ring))])]);
  const sees = graph.op('LessOrEqual', [apart, control(seenReach(ring))]); // [n, 1, C, seen]
  const masked = graph.op('Where', [sees, byQuery, graph.floats(Number.NEGATIVE_INFINITY)]);
  return graph.op('Reshape', [masked, graph.op('Shape', [scores])]);
}

export interface Heads {
  readonly kvHeads: number;
  /** Query heads a kv head. */
  readonly group: number;
  readonly headDim: number;
  readonly scale: number;
}

/** int64 [n, C]: positions of the tokens that leave. */
export function leavingPositions(ring: Ring): Control {
  return tokenControl(named(ring, 'leaving positions'), (t, row) => leavingToken(ring, row, t) ?? row.past);
}

/** Whether a token leaves at query t. */
export function leavesAt(ring: Ring): (t: number, row: Place) => boolean {
  return (t, row) => leavingToken(ring, row, t) !== undefined;
}

/** Tokens that a block of queries may see: the sinks, then what lies in the window of any of them; -1 for none. */
function seen({ window, sinks }: Ring, { past, count }: Place, block: number, size: number): number[] {
  const first = past + block * size - window + 1;
  const tokens = Array.from({ length: sinks + size + window - 1 }, (_, at) => (at < sinks ? at : first + at - sinks));
  return tokens.map((token) => (token < past + count ? Math.max(token, -1) : -1));
}

/** int64 [n, sinks + C + window - 1]: index in [ring, new tokens] of what a block sees. */
function seenIndices(ring: Ring): Control {
  return {
    key: named(ring, 'seen'),
    type: 'int64',
    dims: ['blocks', 'seen'],
    make(row) {
      const { blocks, size } = blocksOf(row.count);
      const all = Array.from({ length: blocks }, (_, block) => seen(ring, row, block, size)).flat();
      return ints([blocks, all.length / blocks], (at) => indexOf(ring, row, all[at]! < 0 ? row.past : all[at]!));
    },
  };
}

// A query sees of the window the tokens from the oldest one on, and of the sinks those before: what is at most `reach` away from the
// middle of such an interval, `middle` after the oldest token. So the host need not make a mask of all queries and columns.

const far = 1 << 22; // tokens; twice as many are whole numbers in float
const half = ({ window }: Ring): number => (window - 1) / 2;

/** float [n, 1, 1, sinks + C + window - 1]: the token of a column, less the middle; beyond all reach where there is none. */
function seenTokens(ring: Ring): Control {
  return {
    key: named(ring, 'seen tokens'),
    type: 'float',
    dims: ['blocks', 1, 1, 'seen'],
    make(row) {
      const { blocks, size } = blocksOf(row.count);
      const all = Array.from({ length: blocks }, (_, block) => seen(ring, row, block, size));
      const width = all[0]!.length;
      const place = (token: number, column: number): number =>
        token < 0 ? 4 * far : token - (column < ring.sinks ? -far - 1 : half(ring));
      return floats([blocks, 1, 1, width], (at) => place(all[Math.floor(at / width)]![at % width]!, at % width));
    },
  };
}

/** float [n, 1, C, 1]: the first token in the window of a query */
function oldestTokens({ window, sinks }: Ring): Control {
  return {
    key: named({ window, sinks }, 'oldest'),
    type: 'float',
    dims: ['blocks', 1, 'size', 1],
    make({ past, count }) {
      const { blocks, size } = blocksOf(count);
      return floats([blocks, 1, size, 1], (t) => past + t - window + 1);
    },
  };
}

/** float [sinks + C + window - 1] */
function seenReach(ring: Ring): Control {
  return {
    key: named(ring, 'reach'),
    type: 'float',
    dims: ['seen'],
    make({ count }) {
      const width = ring.sinks + blocksOf(count).size + ring.window - 1;
      return floats([width], (column) => (column < ring.sinks ? far : half(ring)));
    },
  };
}

/** int64 [entries]: index in [ring, new tokens] of what the ring holds after the new tokens. */
function nextEntries(ring: Ring): Control {
  const entries = entriesOf(ring);
  return {
    key: named(ring, 'next'),
    type: 'int64',
    dims: [entries],
    make(row) {
      const from = Array.from({ length: entries }, (_, entry) => entry);
      for (let token = row.past; token < row.past + row.count; token++)
        from[ringIndex(token, ring.window, ring.sinks)] = indexOf(ring, row, token);
      return ints([entries], (entry) => from[entry]!);
    },
  };
}
