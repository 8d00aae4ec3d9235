import type { Weight } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Derivation, Lowering } from '../lowering.js';

/**
 * phi(x) = [exp(Wx - c), exp(-Wx - c)], c = max |Wx|; without W: x. x [..., C, hd] with the weight's heads, reshaped to
 * `heads`, broadcast before it: -> [..., C, 2F].
 */
export function featureMap(
  { graph, weight: bring }: Lowering,
  x: Ref,
  weight: Weight | undefined,
  heads: readonly number[],
): Ref {
  if (weight === undefined) return x;
  const y = graph.matmul(x, bring(weight, mirrored(heads)), { transB: true }); // [Wx, -Wx], so its maximum is c
  const bound = graph.op('ReduceMax', [y, graph.ints([-1])], { keepdims: 1 });
  return graph.op('Exp', [graph.op('Sub', [y, bound])]);
}

/** Width of phi(x). */
export function featuresOf({ shapeOf }: Lowering, weight: Weight | undefined, headDim: number): number {
  return weight === undefined ? headDim : 2 * shapeOf(weight)[1]!;
}

/** [W, -W] of every head, [...heads, 2F, hd] */
function mirrored(heads: readonly number[]): Derivation {
  return {
    name: `mirrored ${heads.join('x')}`,
    shape: ([, features, headDim]) => [...heads, 2 * features!, headDim!],
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
}
