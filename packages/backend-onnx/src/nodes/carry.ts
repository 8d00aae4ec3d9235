import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { blocksOf, floats, ints } from './blocks.js';
import { bounded, differences, narrow, wide } from './precision.js';
import type { Sizes, StatePart } from './streams.js';

// From what every block of tokens adds to the states to the states that enter every block, in one product with the decays from
// block to block. Letters as in streams.ts.

/** Of the states while blocks are computed: what thousands of keys and values sum up to fits float16. */
export const stateScale: number = 1 / 64;

/**
 * What the tokens of every block add to the states, k^T v: keys [g, n, C, St * F], weighted with the decays to the end of the block,
 * and v [g, n, C, V]; and the log decays of whole blocks in float, [g, n, St] or [g, n, St * F] -> the states that enter every block,
 * times `stateScale`, [g, n, St * F, V]. The states after the last block are written.
 */
export function carry(lowering: Lowering, keys: Ref, v: Ref, decays: Ref, sizes: Sizes, state: StatePart): Ref {
  const { graph, control } = lowering;
  const { states, kvHeads, features, columns, type, gate } = sizes;
  const total = bounded(graph, decays, type);
  const last = (x: Ref): Ref => graph.slice(x, 1, -1, Number.MAX_SAFE_INTEGER);
  const product = (a: Ref, b: Ref): Ref => graph.matmul(a, b, { transA: true, alpha: stateScale });

  // No block comes after the last one: the states of before take its place in the product, written into it, since nothing else reads
  // `added`.
  const added = product(keys, v); // [g, n, St * F, V]
  const past = graph.op('Mul', [graph.transpose(state.past, [1, 0, 2, 3]), graph.floats(stateScale)]);
  const updates = graph.reshape(narrow(graph, past, type), [-1, columns]);
  const all = graph.op('ScatterND', [added, control(lastRows(kvHeads, states * features)), updates]);
  const starts = graph.op('CumSum', [total, graph.ints(1)], { exclusive: 1 });
  const ends = graph.op('Mul', [graph.op('Add', [starts, total]), control(notLast)]);
  const rows =
    gate === 'scalar' ? byState(lowering, all, starts, ends, sizes) : byFeature(lowering, all, starts, ends, sizes);
  const entering = graph.reshape(rows, [kvHeads, -1, states * features, columns]);

  const shape = [kvHeads, states, features, columns];
  const decay = graph.op('Exp', [graph.reshape(last(total), [kvHeads, states, -1, 1])]);
  const kept = graph.op('Mul', [graph.reshape(wide(graph, last(entering), type), shape), decay]);
  const after = graph.op('Add', [kept, graph.reshape(wide(graph, product(last(keys), last(v)), type), shape)]);
  state.next(graph.transpose(graph.op('Mul', [after, graph.floats(1 / stateScale)]), [1, 0, 2, 3]));
  return entering;
}

/** With one decay a state: rows [g, n * St, F * V] in one product a head. */
function byState(
  lowering: Lowering,
  all: Ref,
  starts: Ref,
  ends: Ref,
  { kvHeads, states, features, columns, type }: Sizes,
): Ref {
  const { graph, control } = lowering;
  const to = graph.reshape(starts, [kvHeads, -1, 1]);
  const exponents = graph.op('Sub', [to, graph.reshape(ends, [kvHeads, 1, -1])]);
  const decays = graph.op('Exp', [graph.op('Add', [exponents, control(reach(states))])]); // [g, n * St, n * St]
  return graph.matmul(narrow(graph, decays, type), graph.reshape(all, [kvHeads, -1, features * columns]));
}

/** With one a feature: rows [g, n, St * F, V] in one product a feature. */
function byFeature(lowering: Lowering, all: Ref, starts: Ref, ends: Ref, { type }: Sizes): Ref {
  const { graph, control } = lowering;
  const [to, from] = [starts, ends].map((x) => graph.transpose(x, [0, 2, 1])) as [Ref, Ref]; // [g, St * F, n]
  const mask = narrow(graph, control(reach(1)), type);
  const decays = graph.op('Exp', [graph.op('Add', [differences(graph, to, from, type), mask])]); // [g, St * F, n, n]
  const byRow = graph.transpose(all, [0, 2, 1, 3]);
  return graph.transpose(graph.matmul(decays, byRow), [0, 2, 1, 3]);
}

/** int64 [g * rows, 3]: the place of every row of the last block in [g, n, rows, V] */
function lastRows(kvHeads: number, rows: number): Control {
  return {
    key: `rows of the last block ${kvHeads}x${rows}`,
    type: 'int64',
    dims: [kvHeads * rows, 3],
    make({ count }) {
      const block = blocksOf(count).blocks - 1;
      return ints([kvHeads * rows, 3], (at) => {
        const row = Math.floor(at / 3);
        if (at % 3 === 1) return block;
        return at % 3 === 0 ? Math.floor(row / rows) : row % rows;
      });
    },
  };
}

/** float [n, 1]: 0 for the last block, 1 for the others */
const notLast: Control = {
  key: 'all blocks but the last',
  type: 'float',
  dims: ['blocks', 1],
  make({ count }) {
    const { blocks } = blocksOf(count);
    return floats([blocks, 1], (block) => Number(block < blocks - 1));
  },
};

/** float [n * St, n * St]: 0 from what a block adds to a state to the same state where it enters a later one, and from the last row, else -inf. */
function reach(states: number): Control {
  return {
    key: `reach of blocks of ${states} states`,
    type: 'float',
    dims: ['states', 'states'],
    make({ count }) {
      const { blocks } = blocksOf(count);
      const size = blocks * states;
      const reaches = (to: number, from: number): boolean =>
        to % states === from % states && (from >= size - states || Math.floor(from / states) < Math.floor(to / states));
      return floats([size, size], (at) => (reaches(Math.floor(at / size), at % size) ? 0 : Number.NEGATIVE_INFINITY));
    },
  };
}
