import { ringIndex } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { floats, ints } from './blocks.js';
import { leavingToken, named, type Place, type Ring } from './ring.js';

// A ring that takes one token of each of B rows, over the one that leaves it. Memory that nothing wrote may hold anything: what
// holds no token is never computed with.

export type { Ring };

/** A part of the state that is a ring along its last axis but one. */
export interface RingPart {
  readonly ring: Ring;
  readonly state: string;
  readonly part: number;
  readonly dims: readonly number[];
  /** Somebody wants the tokens that leave. */
  readonly leaves: boolean;
  /** It is held in the compute type; readers get float all the same. */
  readonly narrow: boolean;
}

/** What of a ring's content the attention and the states read, in float. */
export interface KeptOne {
  /** The ring with the new token, [B, ...dims] */
  readonly seen: Ref;
  /** The new token, [B, ..., 1, width], */
  readonly own: Ref;
  /** and what its place held before. */
  readonly old: Ref;
}

/** Takes a token into the ring of its row: x, in float, [B, ..., 1, width]. */
export function joinOne(lowering: Lowering, { ring, state, part, dims, leaves, narrow }: RingPart, x: Ref): KeptOne {
  const { graph, control } = lowering;
  const [held, read] = narrow ? [lowering.compute(x), lowering.float] : [x, (y: Ref) => y];
  const full = [lowering.rows(1), ...dims];
  const past = lowering.past(state, part, full);
  const single = dims.map((size, axis) => (axis === dims.length - 2 ? 1 : size));
  const entry = graph.reshape(control(newEntry(ring)), [-1, ...single.map(() => 1)]);
  const index = graph.op('Expand', [entry, graph.ints([1, ...single])]);
  const old = leaves ? graph.op('GatherElements', [past, index], { axis: dims.length - 1 }) : held;
  // The new entry is made to depend on the old one, which must be read before the ring is written in its place.
  const update = leaves
    ? graph.op('Where', [graph.reshape(control(never), [-1, ...single.map(() => 1)]), old, held])
    : held;
  const next = graph.op('ScatterElements', [past, index, update], { axis: dims.length - 1 });
  lowering.present(state, part, next, full);
  return { seen: read(next), own: x, old: read(old) };
}

/** q [B, g, G, hd], keys [B, g, E, hd] -> scores [B, g, G, E], -inf where an entry holds no token. */
export function tokenScores({ graph, control }: Lowering, ring: Ring, q: Ref, keys: Ref, scale: number): Ref {
  const scores = graph.matmul(q, keys, { transB: true, alpha: scale });
  return graph.op('Where', [control(heldEntries(ring)), scores, graph.floats(Number.NEGATIVE_INFINITY)]);
}

/** Values [B, g, E, hd], 0 where an entry holds no token. */
export function visible({ graph, control }: Lowering, ring: Ring, values: Ref): Ref {
  const held = graph.reshape(control(heldEntries(ring)), [-1, 1, ring.sinks + ring.window, 1]);
  return graph.op('Where', [held, values, graph.floats(0)]);
}

/** bool [1, 1, 1] */
export function leavesNow(ring: Ring): Control {
  return {
    key: named(ring, 'leaves'),
    type: 'bool',
    dims: [1, 1, 1],
    make: (row) => ({ dims: [1, 1, 1], data: Uint8Array.of(Number(leavingToken(ring, row, 0) !== undefined)) }),
  };
}

/** int64 [1, 1]: position of the token that leaves, of the new one where none does. */
export function leavingPosition(ring: Ring): Control {
  return {
    key: named(ring, 'leaving position'),
    type: 'int64',
    dims: [1, 1],
    make: (row) => ints([1, 1], () => leavingToken(ring, row, 0) ?? row.past),
  };
}

/** float [1, 1, 1]: 1 where a token leaves */
export function leavingMask(ring: Ring): Control {
  return {
    key: named(ring, 'leaving mask'),
    type: 'float',
    dims: [1, 1, 1],
    make: (row) => floats([1, 1, 1], () => Number(leavingToken(ring, row, 0) !== undefined)),
  };
}

const never: Control = {
  key: 'never',
  type: 'bool',
  dims: [1],
  make: () => ({ dims: [1], data: new Uint8Array(1) }),
};

/** int64 [1]: the entry that the new token takes. */
function newEntry(ring: Ring): Control {
  return {
    key: named(ring, 'entry'),
    type: 'int64',
    dims: [1],
    make: ({ past }) => ints([1], () => ringIndex(past, ring.window, ring.sinks)),
  };
}

/** bool [1, 1, 1, E]: entries that hold a token once the new one is in; a token lies in exactly one. */
function heldEntries({ sinks, window }: Ring): Control {
  const dims = [1, 1, 1, sinks + window];
  const holds = ({ past }: Place, entry: number): boolean =>
    entry < sinks ? entry <= past : entry - sinks <= past - sinks;
  return {
    key: named({ sinks, window }, 'held'),
    type: 'bool',
    dims,
    make: (row) => ({
      dims,
      data: Uint8Array.from({ length: sinks + window }, (_, entry) => Number(holds(row, entry))),
    }),
  };
}
