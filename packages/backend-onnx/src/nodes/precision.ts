import type { GraphBuilder, Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';
import type { Sizes } from './streams.js';

type Type = Sizes['type'];

/** Something in float as the products want it. */
export function narrow(graph: GraphBuilder, x: Ref, type: Type): Ref {
  return type === 'float' ? x : graph.cast(x, type);
}

/** Something of a type in float. */
export function wide(graph: GraphBuilder, x: Ref, type: Type): Ref {
  return type === 'float' ? x : graph.cast(x, 'float');
}

/** Something of the compute type in a type, which is either that or float. */
export function typed(lowering: Lowering, x: Ref, type: Type): Ref {
  return type === lowering.dialect.compute ? x : lowering.float(x);
}

/** Log decays, none below what hardly counts beside 1, so that in float16 eight are above -88 and 128 above -2048. */
export function bounded(graph: GraphBuilder, decays: Ref, type: Type): Ref {
  return graph.op('Max', [decays, graph.floats(type === 'float' ? -104 : -10.5)]);
}

/** x_i - y_j: x [a, b, X], y [a, b, Y], in float, above -2048 -> [a, b, X, Y] of a type. */
export function differences(graph: GraphBuilder, x: Ref, y: Ref, type: Type): Ref {
  if (type === 'float')
    return graph.op('Sub', [graph.op('Unsqueeze', [x, graph.ints([3])]), graph.op('Unsqueeze', [y, graph.ints([2])])]);
  // A product over whole numbers, which float16 holds, and their fractions, so that nothing is lost before the difference is rounded:
  // it takes a fourth of the time. Eight columns, because rows of products begin at multiples of 16 bytes.
  const parts = (of: Ref, whole: readonly number[], all: readonly number[], ones: readonly number[]): Ref => {
    const times = (from: Ref, by: readonly number[]): Ref =>
      graph.op('Mul', [graph.op('Unsqueeze', [from, graph.ints([3])]), graph.floats(by)]);
    const both = graph.op('Add', [times(graph.op('Round', [of]), whole), times(of, all)]);
    return graph.cast(graph.op('Add', [both, graph.floats(ones)]), type);
  };
  return graph.matmul(
    parts(x, [1, -1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]),
    parts(y, [0, 0, -1, 1, 0, 0, 0, 0], [0, 0, 0, -1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]),
    { transB: true },
  );
}

/** Largest of every row: x [heads, rows, width] in float -> [heads, rows, 1]. By pooling, in half the time that ReduceMax takes on CUDA. */
export function rowMax(graph: GraphBuilder, x: Ref, width: number): Ref {
  const some = [16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2].find((size) => width % size === 0) ?? 1;
  return graph.op('GlobalMaxPool', [graph.op('MaxPool', [x], { kernel_shape: [some], strides: [some] })]);
}
