import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { blockSize, blocksOf, floats, ints } from './blocks.js';
import { carry, stateScale } from './carry.js';
import { bounded, narrow } from './precision.js';
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
  const decays = bounded(graph, filled(streams.decays, 2), type); // [g, n, C, St, F]
  const a = flatDecays(lowering, decays, sizes);
  const weights = narrow(graph, graph.op('Exp', [streams.logGamma]), type); // [1 or g, 1, G, 1, St]
  const weighted = graph.op('Mul', [
    graph.op('Unsqueeze', [q, graph.ints([4])]),
    graph.op('Unsqueeze', [weights, graph.ints([5])]),
  ]);

  const entering = carried(lowering, { k, v, decays }, a, sizes, state);
  const fromStart = graph.reshape(decayed(lowering, a, soFar, sizes), [kvHeads, -1, 1, blockSize, states, features]);
  const queries = graph.reshape(graph.op('Mul', [weighted, fromStart]), [kvHeads, -1, group * blockSize, width]);
  const earlier = graph.matmul(queries, entering, { alpha: 1 / stateScale }); // [g, n, G * C, V]

  const inside = insideBlocks(lowering, { q, weighted, k, v, a }, sizes);
  const out = graph.reshape(graph.op('Add', [earlier, inside]), [0, 0, group, -1, columns]);
  return graph.slice(out, 3, 0, control(size));
}

/** The states alone, of whole blocks. */
export function absorbVector(lowering: Lowering, tokens: Entering, sizes: Sizes, state: StatePart): void {
  const decays = bounded(lowering.graph, tokens.decays, sizes.type);
  carried(lowering, { ...tokens, decays }, flatDecays(lowering, decays, sizes), sizes, state);
}

/** [g, n, C, St, F] in float -> [g * n, C, St * F] as the products read them. */
function flatDecays({ graph }: Lowering, decays: Ref, { states, features, type }: Sizes): Ref {
  return graph.reshape(narrow(graph, decays, type), [-1, blockSize, states * features]);
}

/** The states that enter every block, [g, n, St * F, V]; `a`: the decays once more, flat. */
function carried(lowering: Lowering, { k, v, decays }: Entering, a: Ref, sizes: Sizes, state: StatePart): Ref {
  const { graph } = lowering;
  const { states, kvHeads, features } = sizes;
  const keys = graph.op('Mul', [
    graph.reshape(k, [-1, blockSize, 1, features]),
    graph.reshape(decayed(lowering, a, toEnd, sizes), [-1, blockSize, states, features]),
  ]);
  const flat = graph.reshape(keys, [kvHeads, -1, blockSize, states * features]);
  const added = graph.matmul(flat, v, { transA: true, alpha: stateScale });
  const total = graph.op('ReduceSum', [decays, graph.ints([2])], { keepdims: 0 }); // [g, n, St, F]
  return carry(lowering, added, graph.reshape(total, [0, 0, -1]), sizes, state);
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
  for (let half = blockSize / 2; half >= 1; half /= 2) {
    /** Earlier (0) or later (half) halves: [.., C, size] -> [blocks, half, size] */
    const halves = (x: Ref, size: number, from: number): Ref =>
      graph.slice(graph.reshape(x, [-1, 2 * half, size]), 1, from, from + half);
    const pairs = graph.reshape(decays, [-1, 2 * half, width]);
    const later = graph.op('Mul', [halves(queries, width, half), decayed(lowering, pairs, fromMiddle(half), sizes)]);
    const toMiddleOf = graph.reshape(decayed(lowering, pairs, toMiddle(half), sizes), [-1, half, states, features]);
    const early = graph.op('Mul', [graph.reshape(halves(keys, features, 0), [-1, half, 1, features]), toMiddleOf]);
    const scores = graph.matmul(later, graph.reshape(early, [-1, half, width]), { transB: true }); // [blocks, half, half]
    const late = graph.matmul(scores, halves(values, columns, 0));
    const both = graph.op('Pad', [late, graph.ints([half, 0]), '', graph.ints([1])]);
    sum = graph.op('Add', [sum, graph.reshape(both, [-1, blockSize, columns])]);
  }
  return graph.reshape(sum, [kvHeads, -1, group * blockSize, columns]);
}

/** Which of the `columns` decays of a block count for the row-th token. */
interface Reach {
  readonly name: string;
  readonly rows: number;
  readonly columns: number;
  counts(row: number, column: number): boolean;
}

const toEnd: Reach = { name: 'to end', rows: blockSize, columns: blockSize, counts: (row, column) => column > row };
const soFar: Reach = { name: 'so far', rows: blockSize, columns: blockSize, counts: (row, column) => column <= row };
const fromMiddle = (half: number): Reach => ({
  name: `from middle ${half}`,
  rows: half,
  columns: 2 * half,
  counts: (row, column) => column >= half && column <= half + row,
});
const toMiddle = (half: number): Reach => ({
  name: `to middle ${half}`,
  rows: half,
  columns: 2 * half,
  counts: (row, column) => column > row && column < half,
});

/** exp of sums of log decays, by a product with a constant: a [blocks, columns, width] -> [blocks, rows, width]. */
function decayed({ graph, control }: Lowering, a: Ref, reach: Reach, { type, kvHeads, group }: Sizes): Ref {
  const { name, rows, columns, counts } = reach;
  const heads = columns === blockSize && rows === blockSize ? kvHeads : kvHeads * group;
  const ones: Control = {
    key: `decays ${name}`,
    type: 'float',
    dims: [1, rows, columns],
    make: () => floats([1, rows, columns], (at) => Number(counts(Math.floor(at / columns), at % columns))),
  };
  const shape: Control = {
    key: `shape of decays ${name} ${heads}`,
    type: 'int64',
    dims: [3],
    onHost: true,
    make: ({ count }) => {
      const blocks = (Math.ceil(count / blockSize) * heads * blockSize) / columns;
      return ints([3], (axis) => [blocks, rows, columns][axis]!);
    },
  };
  // Equal batches, because CUDA's products of others cannot be recorded.
  const left = graph.op('Expand', [narrow(graph, control(ones), type), control(shape)]);
  return graph.op('Exp', [graph.matmul(left, a)]);
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
