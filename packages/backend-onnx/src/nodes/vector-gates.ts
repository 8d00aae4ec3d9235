import type { GraphBuilder, Ref } from '../emit.js';
import { blockSize } from './blocks.js';
import type { Sizes, Streams } from './streams.js';

/**
 * Products of full blocks with themselves where every feature has a decay of its own, which cannot be taken out of the product.
 * Every pair s < t is split at the middle of the smallest half-and-half interval that holds both: exp(L_t - L_s) = exp(from the
 * middle to t) exp(from s to the middle), two factors of at most 1, so that log2(C) levels of small products need no quotient and
 * cannot overflow. Letters as in streams.ts. Returns [g, n, G, C, V].
 */
export function insideVector(graph: GraphBuilder, { q, k, v, decays, logGamma }: Streams, sizes: Sizes): Ref {
  const { states, kvHeads, group, features, columns } = sizes;
  const unsqueeze = (x: Ref, axis: number): Ref => graph.op('Unsqueeze', [x, graph.ints([axis])]);
  const own = graph.op('ReduceSum', [graph.op('Mul', [q, unsqueeze(k, 2)]), graph.ints([-1])], { keepdims: 1 });
  let sum = graph.op('Mul', [own, unsqueeze(v, 2)]); // gamma sums to 1
  for (let half = blockSize / 2; half >= 1; half /= 2) {
    const pairs = blockSize / (2 * half);
    /** [g, n, lead, C, ...width] -> [g, n, lead, pairs, half, ...width]: the earlier (0) or later (1) halves. */
    const halves = (x: Ref, lead: number, width: readonly number[], which: number): Ref =>
      graph.reshape(graph.slice(graph.reshape(x, [kvHeads, -1, lead, pairs, 2, half, ...width]), 4, which, which + 1), [
        kvHeads,
        -1,
        lead,
        pairs,
        half,
        ...width,
      ]);
    const after = graph.op('CumSum', [halves(decays, 1, [states, features], 1), graph.ints(4)]);
    const before = graph.op('CumSum', [halves(decays, 1, [states, features], 0), graph.ints(4)], {
      exclusive: 1,
      reverse: 1,
    });
    const weighted = graph.op('Exp', [graph.op('Add', [after, unsqueeze(logGamma, 3)])]); // [g, n, 1 or G, pairs, half, St, F]
    const queries = graph.op('Mul', [halves(q, group, [1, features], 1), weighted]);
    const keys = graph.op('Mul', [halves(k, 1, [1, features], 0), graph.op('Exp', [before])]);
    const product = [kvHeads, -1] as const;
    const scores = graph.matmul(
      graph.reshape(queries, [...product, group, pairs, half, states * features]),
      graph.reshape(keys, [...product, 1, pairs, half, states * features]),
      { transB: true },
    ); // [g, n, G, pairs, half, half]
    const late = graph.matmul(scores, halves(v, 1, [columns], 0));
    const both = graph.op('Pad', [unsqueeze(late, 4), graph.ints([1, 0]), '', graph.ints([4])]);
    sum = graph.op('Add', [sum, graph.reshape(both, [kvHeads, -1, group, blockSize, columns])]);
  }
  return sum;
}
