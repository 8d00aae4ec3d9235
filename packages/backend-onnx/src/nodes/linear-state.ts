import type { DualForm } from '@dsla/spec';
import type { GraphBuilder, Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';
import { blockSize, blocksOf, triangle } from './blocks.js';

// What the states contribute: sum_i gamma_i phi(q)^T S_i, where S_i <- exp(a_i) S_i + phi(k) v^T, in blocks of
// tokens (flash-linear-attention's chunk form). In the comments: St states, g kv heads, G query heads
// a kv head, n blocks of C tokens, F features, V value columns.

export interface Streams {
  /** [g, n, G, C, F] */
  readonly q: Ref;
  /** [g, n, C, F]; 0 where no token enters */
  readonly k: Ref;
  /** [g, n, C, V] */
  readonly v: Ref;
  /** log decays [St, g, n, C, F or 1], all <= 0; 0 where no token enters */
  readonly decays: Ref;
  /** [St, 1 or g, 1, 1 or G, 1, 1] */
  readonly gamma: Ref;
}

export interface Sizes {
  readonly states: number;
  readonly kvHeads: number;
  readonly group: number;
  readonly features: number;
  readonly columns: number;
}

export interface StatePart {
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
  const sums = graph.op('CumSum', [streams.decays, graph.ints(3)]); // [St, g, n, C, D]
  const inside = gate === 'scalar' ? insideScalar(lowering, streams, sums) : insideVector(lowering, streams, sizes);
  const entering = carry(lowering, streams, sizes, gate, state);
  return graph.op('Add', [inside, fromStates(lowering, streams, sums, entering)]);
}

const blockTriangle = triangle('triangle of a block', (count) => blocksOf(count, { full: false }).size);
const scalarChain = triangle('triangle of blocks', (count) => blocksOf(count, { full: false }).blocks + 1);
const vectorChain = triangle('triangle of full blocks', (count) => blocksOf(count, { full: true }).blocks + 1);

/** Products of a block with itself: (q k^T) * sum_i gamma_i exp(L_t - L_s). */
function insideScalar({ graph, control }: Lowering, { q, k, v, gamma }: Streams, sums: Ref): Ref {
  const exponents = graph.op('Sub', [sums, graph.transpose(sums, [0, 1, 2, 4, 3])]); // [St, g, n, C, C]
  // Masked before the exponential: above the diagonal the exponents are positive.
  const decay = graph.op('Exp', [graph.op('Add', [exponents, control(blockTriangle)])]);
  const mixed = overStates(graph, graph.op('Mul', [unsqueeze(graph, decay, 3), gamma]));
  const scores = graph.matmul(q, unsqueeze(graph, k, 2), { transB: true });
  return graph.matmul(graph.op('Mul', [scores, mixed]), unsqueeze(graph, v, 2));
}

/**
 * The same with a decay per feature, which cannot be taken out of the product. Every pair s < t is split at the middle of
 * the smallest half-and-half interval that holds both: exp(L_t - L_s) = exp(from the middle to t) exp(from s to the middle),
 * two factors of at most 1, so that log2(C) levels of small products need no quotient and cannot overflow.
 */
function insideVector({ graph }: Lowering, { q, k, v, decays, gamma }: Streams, sizes: Sizes): Ref {
  const { states, kvHeads, group, features, columns } = sizes;
  const own = graph.op('ReduceSum', [graph.op('Mul', [q, unsqueeze(graph, k, 2)]), graph.ints([-1])], { keepdims: 1 });
  let sum = graph.op('Mul', [own, unsqueeze(graph, v, 2)]); // gamma sums to 1
  const weights = graph.op('Unsqueeze', [gamma, graph.ints([-1, -2])]);
  for (let half = blockSize / 2; half >= 1; half /= 2) {
    const pairs = blockSize / (2 * half);
    /** [..., C, width] -> [..., pairs, 1, half, width]: the earlier (0) or later (1) halves. */
    const halves = (x: Ref, lead: readonly number[], width: number, which: number): Ref =>
      graph.slice(graph.reshape(x, [...lead, pairs, 2, half, width]), -3, which, which + 1);
    const decayLead = [states, kvHeads, -1, 1];
    const after = graph.op('CumSum', [halves(decays, decayLead, features, 1), graph.ints(-2)]);
    const before = graph.op('CumSum', [halves(decays, decayLead, features, 0), graph.ints(-2)], {
      exclusive: 1,
      reverse: 1,
    });
    const queries = graph.op('Mul', [
      graph.op('Mul', [halves(q, [kvHeads, -1, group], features, 1), graph.op('Exp', [after])]),
      weights,
    ]);
    const keys = graph.op('Mul', [halves(k, [kvHeads, -1, 1], features, 0), graph.op('Exp', [before])]);
    const scores = overStates(graph, graph.matmul(queries, keys, { transB: true })); // [g, n, G, pairs, 1, half, half]
    const late = graph.matmul(scores, halves(v, [kvHeads, -1, 1], columns, 0));
    const both = graph.op('Pad', [late, graph.ints([1, 0]), '', graph.ints([-3])]);
    sum = graph.op('Add', [sum, graph.reshape(both, [kvHeads, -1, group, blockSize, columns])]);
  }
  return sum;
}

/**
 * The state that enters every block, [St, g, n, F, V], from what every block adds, in one product with the decays from block
 * to block; the state after the last one is written.
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
  const toEnd = graph.op('CumSum', [decays, graph.ints(3)], { exclusive: 1, reverse: 1 });
  const added = graph.matmul(graph.op('Mul', [k, graph.op('Exp', [toEnd])]), v, { transA: true }); // [St, g, n, F, V]
  const all = graph.concat([unsqueeze(graph, state.past, 2), added], 2); // [St, g, n + 1, F, V]

  const total = graph.transpose(graph.op('ReduceSum', [decays, graph.ints([3])], { keepdims: 0 }), [0, 1, 3, 2]);
  const starts = graph.op('CumSum', [
    graph.op('Pad', [total, graph.ints([1, 0]), '', graph.ints([-1])]),
    graph.ints(-1),
  ]);
  const exponents = graph.op('Sub', [unsqueeze(graph, starts, -1), unsqueeze(graph, starts, -2)]);
  const chain = gate === 'scalar' ? scalarChain : vectorChain;
  const decay = graph.op('Exp', [graph.op('Add', [exponents, control(chain)])]); // [St, g, D, n + 1, n + 1]

  let after: Ref; // [St, g, n + 1, F, V]
  if (gate === 'scalar') {
    const rows = graph.reshape(all, [states, kvHeads, 1, -1, features * columns]);
    after = graph.reshape(graph.matmul(decay, rows), [states, kvHeads, -1, features, columns]);
  } else {
    const rows = graph.transpose(all, [0, 1, 3, 2, 4]);
    after = graph.transpose(graph.matmul(decay, rows), [0, 1, 3, 2, 4]);
  }
  state.next(graph.reshape(graph.slice(after, 2, -1, Number.MAX_SAFE_INTEGER), [states, kvHeads, features, columns]));
  return graph.slice(after, 2, 0, -1);
}

/** sum_i gamma_i exp(L_t) q^T S_i of the entering states. */
function fromStates({ graph }: Lowering, { q, gamma }: Streams, sums: Ref, entering: Ref): Ref {
  const decay = graph.op('Mul', [unsqueeze(graph, graph.op('Exp', [sums]), 3), gamma]);
  const queries = graph.op('Mul', [q, decay]); // [St, g, n, G, C, F]
  return overStates(graph, graph.matmul(queries, unsqueeze(graph, entering, 3)));
}

function overStates(graph: GraphBuilder, x: Ref): Ref {
  return graph.op('ReduceSum', [x, graph.ints([0])], { keepdims: 0 });
}

function unsqueeze(graph: GraphBuilder, x: Ref, axis: number): Ref {
  return graph.op('Unsqueeze', [x, graph.ints([axis])]);
}
