import type { DualForm } from '@dsla/spec';
import type { GraphBuilder, Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { blocksOf, floats, triangle } from './blocks.js';
import type { Sizes, Streams } from './streams.js';
import { insideVector } from './vector-gates.js';

// What the states contribute: sum_i gamma_i phi(q)^T S_i, where S_i <- exp(a_i) S_i + phi(k) v^T, in blocks of tokens
// (flash-linear-attention's chunk form). Letters as in streams.ts.
//
// The states of a head lie side by side, [g, ..., St * F, V], so that a product over all of them is one product, summed over the
// states where that is wanted, and no operand is broadcast: CUDA's batched products want equal batches.

export interface StatePart {
  /** [St, g, F, V] */
  readonly past: Ref;
  next(value: Ref): void;
}

/** Many tokens. Returns [g, n, G, C, V]. */
export function chunked(
  lowering: Lowering,
  streams: Streams,
  sizes: Sizes,
  gate: DualForm['gate'],
  state: StatePart,
): Ref {
  const { graph } = lowering;
  const sums = graph.op('CumSum', [streams.decays, graph.ints(2)]); // [g, n, C, St, D]
  const inside = gate === 'scalar' ? insideScalar(lowering, streams, sizes, sums) : insideVector(graph, streams, sizes);
  const entering = carry(lowering, streams, sizes, gate, state);
  return graph.op('Add', [inside, fromStates(lowering, streams, sizes, sums, entering)]);
}

/** Products of a block with itself: (q k^T) * sum_i gamma_i exp(L_t - L_s) for s <= t. */
function insideScalar({ graph }: Lowering, { q, k, v, logGamma }: Streams, sizes: Sizes, sums: Ref): Ref {
  const { states, features } = sizes;
  const decays = Array.from({ length: states }, (_, state) => {
    const own = graph.slice(sums, 3, state, state + 1); // [g, n, C, 1, 1]
    const from = graph.op('Unsqueeze', [graph.reshape(own, [0, 0, 1, -1]), graph.ints([2])]); // [g, n, 1, 1, C]
    const weight = graph.op('Squeeze', [graph.slice(logGamma, 4, state, state + 1), graph.ints([5])]);
    const to = graph.op('Add', [graph.op('Unsqueeze', [graph.reshape(own, [0, 0, -1, 1]), graph.ints([2])]), weight]);
    return graph.op('Exp', [graph.op('Sub', [to, from])]); // [g, n, 1 or G, C, C]
  });
  const mixed = decays.reduce((sum, each) => graph.op('Add', [sum, each]));
  const scores = graph.matmul(graph.reshape(q, [0, 0, -1, features]), k, { transB: true }); // [g, n, G * C, C]
  const shape = graph.concat(
    [graph.op('Shape', [q], { start: 0, end: 4 }), graph.op('Shape', [k], { start: 2, end: 3 })],
    0,
  );
  // Above the diagonal the decays are those of growth, perhaps beyond all bounds: nothing of it is left.
  const held = graph.op('Trilu', [graph.op('Mul', [graph.op('Reshape', [scores, shape]), mixed])], { upper: 0 });
  const flat = graph.op('Reshape', [held, graph.op('Shape', [scores])]);
  return byToken(graph, graph.matmul(flat, v), sizes);
}

/**
 * The states that enter every block, [g, n, St * F, V], from what every block adds, in one product with the decays from block to
 * block; the states after the last one are written.
 */
function carry(
  lowering: Lowering,
  { k, v, decays }: Streams,
  sizes: Sizes,
  gate: DualForm['gate'],
  state: StatePart,
): Ref {
  const { graph, control } = lowering;
  const { states, kvHeads, features, columns } = sizes;
  const toEnd = graph.op('CumSum', [decays, graph.ints(2)], { exclusive: 1, reverse: 1 });
  const keys = graph.op('Mul', [graph.op('Unsqueeze', [k, graph.ints([3])]), graph.op('Exp', [toEnd])]);
  const added = graph.matmul(graph.reshape(keys, [0, 0, 0, states * features]), v, { transA: true }); // [g, n, St * F, V]
  const past = graph.reshape(graph.transpose(state.past, [1, 0, 2, 3]), [kvHeads, 1, states * features, columns]);
  const all = graph.concat([past, added], 1); // [g, n + 1, St * F, V]

  const total = graph.op('ReduceSum', [decays, graph.ints([2])], { keepdims: 0 }); // [g, n, St, D]
  const padded = graph.op('Pad', [total, graph.ints([1, 0]), '', graph.ints([1])]);
  const starts = graph.op('CumSum', [padded, graph.ints(1)]); // [g, n + 1, St, D]
  let after: Ref; // [g, n + 1, St * F, V]
  if (gate === 'scalar') {
    const decay = between(graph, graph.reshape(starts, [kvHeads, -1]), control(stateChain(states)));
    const rows = graph.matmul(decay, graph.reshape(all, [kvHeads, -1, features * columns]));
    after = graph.reshape(rows, [kvHeads, -1, states * features, columns]);
  } else {
    const byFeature = graph.transpose(graph.reshape(starts, [0, 0, states * features]), [0, 2, 1]);
    const rows = graph.matmul(
      between(graph, byFeature, control(blockChain)),
      graph.transpose(all, [0, 2, 1, 3]), // [g, St * F, n + 1, V]
    );
    after = graph.transpose(rows, [0, 2, 1, 3]);
  }
  const last = graph.reshape(graph.slice(after, 1, -1, Number.MAX_SAFE_INTEGER), [kvHeads, states, features, columns]);
  state.next(graph.transpose(last, [1, 0, 2, 3]));
  return graph.slice(after, 1, 0, -1);
}

/** exp(x_i - x_j) under a mask that is 0 or -inf: x [..., N] -> [..., N, N] */
function between(graph: GraphBuilder, x: Ref, mask: Ref): Ref {
  const exponents = graph.op('Sub', [
    graph.op('Unsqueeze', [x, graph.ints([-1])]),
    graph.op('Unsqueeze', [x, graph.ints([-2])]),
  ]);
  return graph.op('Exp', [graph.op('Add', [exponents, mask])]);
}

const blockChain = triangle('triangle of full blocks', (count) => blocksOf(count, { full: true }).blocks + 1);

/** The same of blocks whose states are rows of their own, [(n + 1) * St, (n + 1) * St]: 0 from a state to itself in a later block. */
function stateChain(states: number): Control {
  return {
    key: `triangle of blocks of ${states} states`,
    type: 'float',
    dims: ['chain', 'chain'],
    make({ count }) {
      const size = (blocksOf(count, { full: false }).blocks + 1) * states;
      const reaches = (to: number, from: number): boolean =>
        to % states === from % states && Math.floor(from / states) <= Math.floor(to / states);
      return floats([size, size], (at) => (reaches(Math.floor(at / size), at % size) ? 0 : Number.NEGATIVE_INFINITY));
    },
  };
}

/** sum_i gamma_i exp(L_t) q^T S_i of the entering states. */
function fromStates({ graph }: Lowering, { q, logGamma }: Streams, sizes: Sizes, sums: Ref, entering: Ref): Ref {
  const { states, features } = sizes;
  const decay = graph.op('Exp', [graph.op('Add', [graph.op('Unsqueeze', [sums, graph.ints([2])]), logGamma])]);
  const queries = graph.op('Mul', [graph.op('Unsqueeze', [q, graph.ints([4])]), decay]); // [g, n, G, C, St, F]
  const rows = graph.reshape(queries, [0, 0, -1, states * features]);
  return byToken(graph, graph.matmul(rows, entering), sizes);
}

/** [g, n, G * C, V] -> [g, n, G, C, V] */
function byToken(graph: GraphBuilder, x: Ref, { group, columns }: Sizes): Ref {
  return graph.reshape(x, [0, 0, group, -1, columns]);
}
