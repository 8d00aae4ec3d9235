import type { Weight } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Derivation, Lowering } from '../lowering.js';

/**
 * phi(x) = [exp(Wx - c), exp(-Wx - c)], c = max |Wx|; without W: x. x [..., C, hd] with the weight's heads, reshaped to
 * `heads`, broadcast before it: -> [..., C, 2F].
 */
export function featureMap(
  { graph, weight: bring, shapeOf }: Lowering,
  x: Ref,
  weight: Weight | undefined,
  heads: readonly number[],
): Ref {
  if (weight === undefined) return x;
  const mirror = graph.reshape(bring(weight, mirrored), [...heads, 2 * shapeOf(weight)[1]!, shapeOf(weight)[2]!]);
  const y = graph.matmul(x, mirror, { transB: true }); // [Wx, -Wx], so its maximum is c
  const bound = graph.op('ReduceMax', [y, graph.ints([-1])], { keepdims: 1 });
  return graph.op('Exp', [graph.op('Sub', [y, bound])]);
}

/** The same of tokens of some rows: x [B, heads, hd] -> [B, heads, 2F]. */
export function featuresOfTokens(lowering: Lowering, x: Ref, weight: Weight | undefined): Ref {
  if (weight === undefined) return x;
  const { graph } = lowering;
  const [heads] = lowering.shapeOf(weight);
  const byHead = featureMap(lowering, graph.transpose(x, [1, 0, 2]), weight, [heads!]); // products of all rows by head
  return graph.transpose(byHead, [1, 0, 2]);
}

/** Width of phi(x). */
export function featuresOf({ shapeOf }: Lowering, weight: Weight | undefined, headDim: number): number {
  return weight === undefined ? headDim : 2 * shapeOf(weight)[1]!;
}

/** [W, -W] of every head, [heads, 2F, hd] */
const mirrored: Derivation = {
  name: 'mirrored',
  shape: ([heads, features, headDim]) => [heads!, 2 * features!, headDim!],
  apply(weight, [, features, headDim]) {
    const size = features! * headDim!;
    return new Float32Array(2 * weight.length).map((_, at) => {
      const head = Math.floor(at / (2 * size));
      const within = at % (2 * size);
      const value = weight[head * size + (within % size)]!;
      return within < size ? value : -value;
    });
  },
};
