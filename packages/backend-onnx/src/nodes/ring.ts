import { ringIndex } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, ControlData, Lowering } from '../lowering.js';
import { blocksOf, ints } from './blocks.js';

// A ring of sinks + window entries, laid out as kvState says, and the exact attention over what it holds. Indices and masks
// are made on the host: layers of equal window and sinks share them. Where an index has no token it names one that exists,
// under a mask, because memory that nothing wrote may hold anything.

export interface Ring {
  readonly window: number;
  readonly sinks: number;
}

const blocking = { full: false };
type Place = { readonly past: number; readonly count: number };

function ringControl(
  what: string,
  { window, sinks }: Ring,
  type: Control['type'],
  dims: Control['dims'],
  make: (row: Place) => ControlData,
): Control {
  return { key: `ring ${sinks}+${window} ${what}`, type, dims, make };
}

/** Index of token j in [ring, new tokens]. */
function indexOf({ window, sinks }: Ring, { past }: Place, token: number): number {
  return token < past ? ringIndex(token, window, sinks) : sinks + window + token - past;
}

/** Tokens that a block of queries may see: the sinks, then what lies in the window of any of them; -1 for none. */
function seen({ window, sinks }: Ring, { past, count }: Place, block: number, size: number): number[] {
  const first = past + block * size - window + 1;
  const tokens = Array.from({ length: sinks + size + window - 1 }, (_, at) => (at < sinks ? at : first + at - sinks));
  return tokens.map((token) => (token < past + count ? Math.max(token, -1) : -1));
}

/** int64 [n, sinks + C + window - 1]: index in [ring, new tokens] of what a block sees. */
function seenIndices(ring: Ring): Control {
  return ringControl('seen', ring, 'int64', ['blocks', 'seen'], (row) => {
    const { blocks, size } = blocksOf(row.count, blocking);
    const all = Array.from({ length: blocks }, (_, block) => seen(ring, row, block, size)).flat();
    return ints([blocks, all.length / blocks], (at) => indexOf(ring, row, all[at]! < 0 ? row.past : all[at]!));
  });
}

/** float [n, 1, C, sinks + C + window - 1]: 0 where a query sees a token, -inf elsewhere. */
function seenMask(ring: Ring): Control {
  return ringControl('mask', ring, 'float', ['blocks', 1, 'size', 'seen'], (row) => {
    const { blocks, size } = blocksOf(row.count, blocking);
    const width = ring.sinks + size + ring.window - 1;
    const data = new Float32Array(blocks * size * width).fill(Number.NEGATIVE_INFINITY);
    for (let at = 0; at < blocks * size; at++) {
      const query = row.past + Math.min(at, row.count - 1);
      const oldest = query - ring.window + 1; // in the window
      const first = row.past + Math.floor(at / size) * size - ring.window + 1; // in the block's columns
      const column = at * width + ring.sinks - first; // of token 0
      data.fill(0, at * width, at * width + Math.max(0, Math.min(ring.sinks, oldest)));
      data.fill(0, column + Math.max(0, oldest), column + query + 1);
    }
    return { dims: [blocks, 1, size, width], data };
  });
}

/** int64 [sinks + window]: index in [ring, new tokens] of what the ring holds after the new tokens. */
function nextEntries(ring: Ring): Control {
  const entries = ring.sinks + ring.window;
  return ringControl('next', ring, 'int64', [entries], (row) => {
    const from = Array.from({ length: entries }, (_, entry) => entry);
    for (let token = Math.max(row.past, 0); token < row.past + row.count; token++)
      from[ringIndex(token, ring.window, ring.sinks)] = indexOf(ring, row, token);
    return ints([entries], (entry) => from[entry]!);
  });
}

/** Joins a part of the ring with the new tokens along `axis`, moves the ring on, and returns [ring, new tokens]. */
export function arrive(
  lowering: Lowering,
  state: string,
  part: number,
  ring: Ring,
  x: Ref,
  axis: number,
  dims: readonly number[],
): Ref {
  const { graph } = lowering;
  const all = graph.concat([lowering.past(state, part, dims), x], axis);
  lowering.present(state, part, graph.op('Gather', [all, lowering.control(nextEntries(ring))], { axis }), dims);
  return all;
}

/** [ring, new tokens] by kv head, [kvHeads, entries + T, hd] -> what the blocks see, [kvHeads, n, 1, seen, hd]. */
export function seenBy({ graph, control }: Lowering, ring: Ring, all: Ref): Ref {
  return graph.op('Unsqueeze', [graph.op('Gather', [all, control(seenIndices(ring))], { axis: 1 }), graph.ints([2])]);
}

/** q [kvHeads, n, group, C, hd], keys [kvHeads, n, 1, seen, hd] -> masked scores [kvHeads, n, group, C, seen]. */
export function exactScores({ graph, control }: Lowering, ring: Ring, q: Ref, keys: Ref, scale: number): Ref {
  return graph.op('Add', [graph.matmul(q, keys, { transB: true, alpha: scale }), control(seenMask(ring))]);
}

/** The token that enters the states at query t: past + t - window. */
export function enteringIndex(ring: Ring, row: Place, t: number): number {
  const token = row.past + t - ring.window;
  return indexOf(ring, row, enters(ring, row, t) ? token : row.past);
}

export function enteringPosition(ring: Ring, row: Place, t: number): number {
  return enters(ring, row, t) ? row.past + t - ring.window : row.past;
}

export function enters({ window, sinks }: Ring, { past, count }: Place, t: number): boolean {
  return t < count && past + t - window >= sinks;
}
