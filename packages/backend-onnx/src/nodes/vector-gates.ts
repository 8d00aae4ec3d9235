import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { blockSize, blocksOf, floats, ints, once } from './blocks.js';
import { carry, stateScale } from './carry.js';
import { narrow, wide } from './precision.js';
import type { Entering, Sizes, StatePart, Streams } from './streams.js';

// What the states contribute where every feature has a decay of its own: sum_i gamma_i q^T S_i, where S_i <- diag(exp(a_i)) S_i + k v^T,
// in blocks of tokens (Yang et al., arXiv 2312.06635, section 4). Letters as in streams.ts. The states of a head lie side by side,
// [St * F, V].

/** Returns [g, n, G, C, V]. */
export function chunkedVector(lowering: Lowering, streams: Streams, sizes: Sizes, state: StatePart): Ref {
  const { graph, control } = lowering;
  const { states, kvHeads, group, features, columns, type } = sizes;
  const width = states * features;
  // Whole blocks, also of a run that is shorter than one: what is filled up decays nothing and adds nothing.
  const filled = (x: Ref, axis: number): Ref => graph.op('Pad', [x, control(missing), '', graph.ints([axis])]);
  const [q, k, v] = [filled(streams.q, 3), filled(streams.k, 2), filled(streams.v, 2)];
  const a = graph.reshape(filled(streams.decays, 2), [-1, blockSize, width]);
  const weights = narrow(graph, graph.op('Exp', [streams.logGamma]), type); // [1 or g, 1, G, 1, St]
  const weighted = graph.op('Mul', [
    graph.reshape(q, [kvHeads, -1, group, blockSize, 1, features]),
    graph.op('Unsqueeze', [weights, graph.ints([5])]),
  ]);

  const entering = carried(lowering, { k, v, decays: a }, sizes, state);
  const fromStart = graph.reshape(decayed(lowering, a, soFar, sizes), [-1, 1, blockSize, width]);
  const product = graph.op('Mul', [graph.reshape(weighted, [-1, group, blockSize, width]), fromStart]);
  const queries = graph.reshape(product, [kvHeads, -1, group * blockSize, width]);
  const earlier = graph.matmul(queries, entering, { alpha: 1 / stateScale }); // [g, n, G * C, V]

  const inside = insideBlocks(lowering, { q, weighted, k, v, a }, sizes);
  const out = graph.reshape(graph.op('Add', [earlier, inside]), [0, 0, group, -1, columns]);
  return graph.slice(out, 3, 0, control(size));
}

/** The states alone, of whole blocks. */
export function absorbVector(lowering: Lowering, tokens: Entering, sizes: Sizes, state: StatePart): void {
  const { states, features } = sizes;
  const decays = lowering.graph.reshape(tokens.decays, [-1, blockSize, states * features]);
  carried(lowering, { ...tokens, decays }, sizes, state);
}

/** The states that enter every block, [g, n, St * F, V]; decays [g * n, C, St * F]. */
function carried(lowering: Lowering, { k, v, decays }: Entering, sizes: Sizes, state: StatePart): Ref {
  const { graph } = lowering;
  const { states, kvHeads, features, type } = sizes;
  const keys = graph.op('Mul', [
    graph.reshape(k, [-1, 1, features]),
    graph.reshape(decayed(lowering, decays, toEnd, sizes), [-1, states, features]),
  ]);
  const flat = graph.reshape(keys, [kvHeads, -1, blockSize, states * features]);
  const total = graph.reshape(summed(lowering, decays, all, sizes), [kvHeads, -1, states * features]);
  return carry(lowering, flat, v, wide(graph, total, type), sizes, state);
}

/** Of full blocks: q [g, n, G, C, F], times the gammas [g, n, G, C, St, F], k [g, n, C, F], v [g, n, C, V], log decays [g * n, C, St * F]. */
interface Blocks {
  readonly q: Ref;
  readonly weighted: Ref;
  readonly k: Ref;
  readonly v: Ref;
  readonly a: Ref;
}

/**
 * Products of blocks with themselves where a decay cannot be taken out of the product. Every pair s < t is split at the middle of the
 * smallest half-and-half interval that holds both: exp(L_t - L_s) = exp(from the middle to t) exp(from s to the middle), two factors
 * of at most 1, so that log2(C) levels of small products need no quotient and cannot overflow. [g, n, G * C, V]
 */
function insideBlocks(lowering: Lowering, { q, weighted, k, v, a }: Blocks, sizes: Sizes): Ref {
  const { graph } = lowering;
  const { states, kvHeads, group, features, columns, scale, type } = sizes;
  const width = states * features;
  /** Of a kv head for each of its query heads: [g, n, C, ...] -> [g * n * G, C, size] */
  const repeated = (x: Ref, size: number): Ref => {
    if (group === 1) return graph.reshape(x, [-1, blockSize, size]);
    const apart = graph.reshape(x, [kvHeads, -1, 1, blockSize, size]);
    return graph.reshape(graph.op('Expand', [apart, graph.ints([1, 1, group, 1, 1])]), [-1, blockSize, size]);
  };
  const [keys, values, decays] = [repeated(k, features), repeated(v, columns), repeated(a, width)];
  const queries = graph.reshape(weighted, [-1, blockSize, width]);
  const own = graph.op(
    'ReduceSum',
    [graph.op('Mul', [graph.reshape(q, [-1, blockSize, features]), keys]), graph.ints([-1])],
    {
      keepdims: 1,
    },
  );
  const scaled = graph.op('Mul', [own, narrow(graph, graph.floats(scale), type)]); // gamma sums to 1
  let sum = graph.op('Mul', [scaled, values]);
  const late = blockSize / 2;
  for (let half = late; half >= 1; half /= 2) {
    /** Earlier (0) or later (half) halves: [.., C, size] -> [g * n * G, C / 2, size] */
    const halves = (x: Ref, size: number, from: number): Ref =>
      graph.reshape(graph.slice(graph.reshape(x, [-1, 2 * half, size]), 1, from, from + half), [-1, late, size]);
    const later = graph.op('Mul', [halves(queries, width, half), decayed(lowering, decays, fromMiddle(half), sizes)]);
    const toMiddleOf = graph.reshape(decayed(lowering, decays, toMiddle(half), sizes), [-1, states, features]);
    const early = graph.op('Mul', [graph.reshape(halves(keys, features, 0), [-1, 1, features]), toMiddleOf]);
    // All halves of a block in one product, of which those of one pair count: many small ones take longer.
    const scores = graph.matmul(later, graph.reshape(early, [-1, late, width]), { transB: true });
    const own =
      half === late ? scores : graph.op('Mul', [scores, narrow(graph, lowering.control(pairsOf(half)), type)]);
    const out = graph.reshape(graph.matmul(own, halves(values, columns, 0)), [-1, half, columns]);
    const both = graph.op('Pad', [out, graph.ints([half, 0]), '', graph.ints([1])]);
    sum = graph.op('Add', [sum, graph.reshape(both, [-1, blockSize, columns])]);
  }
  return graph.reshape(sum, [kvHeads, -1, group * blockSize, columns]);
}

/** float [C / 2, C / 2]: 1 where two halves are of one pair */
function pairsOf(half: number): Control {
  const size = blockSize / 2;
  const pair = (at: number): number => Math.floor(at / half);
  return {
    key: `pairs of halves of ${half}`,
    type: 'float',
    dims: [size, size],
    make: once(() => floats([size, size], (at) => Number(pair(Math.floor(at / size)) === pair(at % size)))),
  };
}

/** Which decays of a block count for each of some rows. */
interface Reach {
  readonly name: string;
  readonly rows: number;
  counts(row: number, token: number): boolean;
}

const all: Reach = { name: 'all', rows: 1, counts: () => true };
const toEnd: Reach = { name: 'to end', rows: blockSize, counts: (row, token) => token > row };
const soFar: Reach = { name: 'so far', rows: blockSize, counts: (row, token) => token <= row };
/** First token of the pair that holds the row-th token of all halves. */
const pairAt = (half: number, row: number): number => Math.floor(row / half) * 2 * half;
const fromMiddle = (half: number): Reach => ({
  name: `from middle ${half}`,
  rows: blockSize / 2,
  counts: (row, token) => token >= pairAt(half, row) + half && token <= pairAt(half, row) + half + (row % half),
});
const toMiddle = (half: number): Reach => ({
  name: `to middle ${half}`,
  rows: blockSize / 2,
  counts: (row, token) => token > pairAt(half, row) + (row % half) && token < pairAt(half, row) + half,
});

function decayed(lowering: Lowering, a: Ref, reach: Reach, sizes: Sizes): Ref {
  return lowering.graph.op('Exp', [summed(lowering, a, reach, sizes)]);
}

/** Sums of log decays by a product with a constant: a [blocks, C, width] -> [blocks, rows, width]. */
function summed({ graph, control }: Lowering, a: Ref, reach: Reach, { type, kvHeads, group }: Sizes): Ref {
  const { name, rows, counts } = reach;
  const heads = rows === blockSize / 2 ? kvHeads * group : kvHeads;
  const ones: Control = {
    key: `decays ${name}`,
    type: 'float',
    dims: [1, rows, blockSize],
    make: once(() => floats([1, rows, blockSize], (at) => Number(counts(Math.floor(at / blockSize), at % blockSize)))),
  };
  const shape: Control = {
    key: `shape of decays of ${rows} and ${heads}`,
    type: 'int64',
    dims: [3],
    onHost: true,
    make: ({ count }) => ints([3], (axis) => [Math.ceil(count / blockSize) * heads, rows, blockSize][axis]!),
  };
  // Equal batches, because CUDA's products of others cannot be recorded.
  return graph.matmul(graph.op('Expand', [narrow(graph, control(ones), type), control(shape)]), a);
}

/** int64 [2]: tokens that a block lacks, before and after */
const missing: Control = {
  key: 'tokens that a block lacks',
  type: 'int64',
  dims: [2],
  onHost: true,
  make: ({ count }) => ints([2], (end) => (end === 0 ? 0 : blockSize - blocksOf(count).size)),
};

/** int64 [1]: tokens of a block */
const size: Control = {
  key: 'tokens of a block',
  type: 'int64',
  dims: [1],
  onHost: true,
  make: ({ count }) => ints([1], () => blocksOf(count).size),
};
