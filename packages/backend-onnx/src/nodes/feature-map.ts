import type { Weight } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';

/**
 * phi(x) = [exp(Wx - c), exp(-Wx - c)], c = max |Wx|; without W: x. x [..., C, hd] with the weight's heads, reshaped to
 * `heads`, broadcast before it: -> [..., C, 2F].
 */
export function featureMap(lowering: Lowering, x: Ref, weight: Weight | undefined, heads: readonly number[]): Ref {
  if (weight === undefined) return x;
  const { graph, shapeOf } = lowering;
  const [, features, headDim] = shapeOf(weight) as [number, number, number];
  const w = graph.reshape(lowering.weight(weight), [...heads, features, headDim]);
  const y = graph.matmul(x, w, { transB: true });
  const bound = graph.op('ReduceMax', [graph.op('Abs', [y]), graph.ints([-1])], { keepdims: 1 });
  return graph.op('Exp', [graph.op('Sub', [graph.concat([y, graph.op('Neg', [y])], -1), bound])]);
}

/** Width of phi(x). */
export function featuresOf({ shapeOf }: Lowering, weight: Weight | undefined, headDim: number): number {
  return weight === undefined ? headDim : 2 * shapeOf(weight)[1]!;
}
