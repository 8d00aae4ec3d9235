import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { blockSize, blocksOf, floats, ints, reshapeTo } from './blocks.js';
import { carry, stateScale } from './carry.js';
import { bounded, narrow } from './precision.js';
import type { Entering, Sizes, StatePart, Streams } from './streams.js';

// What the states contribute where every head has one decay a token: sum_i gamma_i q^T S_i, where S_i <- exp(a_i) S_i + k v^T, in
// blocks of tokens (Yang et al., arXiv 2312.06635, section 4). Letters as in streams.ts. Every pass over [.., T, F] takes time, so
// the states share the products: q k^T, which then is weighted with the sum over the states of their decays, and what they hold,
// which lies side by side, [St * F, V]. Decays are summed in float and lie in what the products read.

/** Returns [g, n, G, C, V]. */
export function chunkedScalar(lowering: Lowering, streams: Streams, sizes: Sizes, state: StatePart): Ref {
  const { graph } = lowering;
  const sums = sumsOf(lowering, streams, sizes);
  const inside = insideBlocks(lowering, streams, sizes, sums);
  const earlier = fromStates(lowering, streams, sizes, sums, carried(lowering, streams, sizes, sums, state));
  return graph.reshape(graph.op('Add', [inside, earlier]), [0, 0, sizes.group, -1, sizes.columns]);
}

/** The states alone. */
export function absorbScalar(lowering: Lowering, tokens: Entering, sizes: Sizes, state: StatePart): void {
  carried(lowering, tokens, sizes, sumsOf(lowering, tokens, sizes), state);
}

/** Log decays from the start of a block to a token and with it, in float, [g, n, C, St]. */
function sumsOf({ graph }: Lowering, { decays }: Entering, { type }: Sizes): Ref {
  const own = bounded(graph, graph.op('Squeeze', [decays, graph.ints([4])]), type);
  return graph.op('CumSum', [own, graph.ints(2)]);
}

/** Products of a block with itself: (q k^T) * sum_i gamma_i exp(L_t - L_s) for s <= t. [g, n, G * C, V] */
function insideBlocks(lowering: Lowering, { q, k, v, logGamma }: Streams, sizes: Sizes, sums: Ref): Ref {
  const { graph } = lowering;
  const { states, group, features } = sizes;
  const to = graph.op('Add', [graph.op('Unsqueeze', [sums, graph.ints([2])]), logGamma]); // [g, n, G, C, St]
  const mixed =
    sizes.type === 'float' ? byExponents(lowering, to, sums, states) : byFactors(lowering, to, sums, states);
  const scores = graph.matmul(graph.reshape(q, [0, 0, -1, features]), k, { transB: true });
  const weighted = graph.op('Mul', [scores, mixed]);
  // Above the diagonal the decays are those of growth, perhaps beyond all bounds: nothing of it is left.
  const byQuery = group === 1 ? weighted : graph.reshape(weighted, [0, 0, group, 0, -1]);
  const held = graph.op('Trilu', [byQuery], { upper: 0 });
  return graph.matmul(group === 1 ? held : graph.reshape(held, [0, 0, -1, 0]), v);
}

/** sum_i exp(x_t - y_s) of x [g, n, G, C, St] and y [g, n, C, St], in float: [g, n, G * C, C] */
function byExponents({ graph }: Lowering, x: Ref, y: Ref, states: number): Ref {
  const ofStates = Array.from({ length: states }, (_, state) => {
    const rows = graph.reshape(graph.slice(x, 4, state, state + 1), [0, 0, -1, 1]);
    const columns = graph.reshape(graph.slice(y, 3, state, state + 1), [0, 0, 1, -1]);
    return graph.op('Exp', [graph.op('Sub', [rows, columns])]);
  });
  return ofStates.reduce((sum, each) => graph.op('Add', [sum, each]));
}

/**
 * The same for s <= t in float16 by one product in float, instead of a pass for every exponential: with the part of a block that s
 * lies in, and m halfway through it, exp(x_t - y_s) = exp(x_t - m) exp(m - y_s). For s > t anything comes out, also infinity.
 */
function byFactors(lowering: Lowering, x: Ref, y: Ref, states: number): Ref {
  const { graph, control } = lowering;
  const column = graph.ints([-1]);
  const middles = graph.transpose(graph.op('Gather', [y, control(middlesOfParts)], { axis: 2 }), [0, 1, 3, 2]); // [g, n, St, P]
  const from = graph.op('Unsqueeze', [middles, graph.ints([2, 3])]);
  const reached = graph.op('Add', [graph.op('Sub', [graph.op('Unsqueeze', [x, column]), from]), control(partsReached)]);
  const to = graph.op('Unsqueeze', [middles, graph.ints([2])]);
  const own = graph.op('Add', [graph.op('Sub', [to, graph.op('Unsqueeze', [y, column])]), control(partOfToken)]);
  const [rows, columns] = [reached, own].map((exponents) =>
    graph.reshape(graph.op('Exp', [exponents]), [0, 0, -1, states * parts]),
  ) as [Ref, Ref];
  return graph.cast(graph.matmul(rows, columns, { transB: true }), 'float16');
}

/** So short that the decays of half of them stay within float: `bounded`. */
const partSize = 16;
const parts: number = blockSize / partSize;

/** int64 [P] */
const middlesOfParts: Control = {
  key: 'middles of the parts of a block',
  type: 'int64',
  dims: [parts],
  make: ({ count }) => ints([parts], (part) => Math.min(part * partSize + partSize / 2 - 1, blocksOf(count).size - 1)),
};

/** float [C, 1, P]: 0 where a part holds the token or ones before it, else -inf */
const partsReached: Control = partControl('parts before a token', (part, own) => part <= own);
/** The same where it holds the token. */
const partOfToken: Control = partControl('part of a token', (part, own) => part === own);

function partControl(key: string, holds: (part: number, own: number) => boolean): Control {
  return {
    key,
    type: 'float',
    dims: ['size', 1, parts],
    make({ count }) {
      const { size } = blocksOf(count);
      return floats([size, 1, parts], (at) =>
        holds(at % parts, Math.floor(at / parts / partSize)) ? 0 : Number.NEGATIVE_INFINITY,
      );
    },
  };
}

/** The states that enter every block, [g, n, St * F, V]. */
function carried(lowering: Lowering, { k, v }: Entering, sizes: Sizes, sums: Ref, state: StatePart): Ref {
  const { graph } = lowering;
  const total = graph.slice(sums, 2, -1, Number.MAX_SAFE_INTEGER); // [g, n, 1, St]
  const keys = scaled(lowering, k, graph.op('Sub', [total, sums]), sizes, ['size']); // [g, n, C, St * F]
  return carry(lowering, keys, v, graph.op('Squeeze', [total, graph.ints([2])]), sizes, state);
}

/** sum_i gamma_i exp(L_t) q^T S_i of the entering states. [g, n, G * C, V] */
function fromStates(lowering: Lowering, { q, logGamma }: Streams, sizes: Sizes, sums: Ref, entering: Ref): Ref {
  const { graph } = lowering;
  const exponents = graph.op('Add', [graph.op('Unsqueeze', [sums, graph.ints([2])]), logGamma]); // [g, n, G, C, St]
  const queries = scaled(lowering, q, exponents, sizes, [sizes.group, 'size']); // [g, n, G, C, St * F]
  const rows = graph.reshape(queries, [0, 0, -1, sizes.states * sizes.features]);
  return graph.matmul(rows, entering, { alpha: 1 / stateScale });
}

/** x exp(e) for every state, side by side: x [g, n, ...tokens, F], e [g, n, ...tokens, St] in float -> [g, n, ...tokens, St * F] */
function scaled(lowering: Lowering, x: Ref, e: Ref, sizes: Sizes, tokens: readonly (number | 'size')[]): Ref {
  const { graph } = lowering;
  const { kvHeads, states, features, type } = sizes;
  const factors = graph.reshape(narrow(graph, graph.op('Exp', [e]), type), [-1, states, 1]);
  const product = graph.op('Mul', [graph.reshape(x, [-1, 1, features]), factors]);
  return reshapeTo(lowering, product, [kvHeads, 'blocks', ...tokens, states * features]);
}
