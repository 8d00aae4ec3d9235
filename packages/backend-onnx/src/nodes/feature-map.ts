import type { Weight } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Derivation, Lowering } from '../lowering.js';
import { reshapeTo } from './blocks.js';
import { narrow, rowMax, wide } from './precision.js';
import type { Sizes } from './streams.js';

/**
 * phi(x) = [exp(Wx - c), exp(-Wx - c)], c = max |Wx|; without W: x. Of tokens in blocks, of the type of the sizes: x [g, n, C, hd], or
 * [g, n, G, C, hd] where the weight has g * G heads -> the same with 2F for hd.
 */
export function featureMap(
  lowering: Lowering,
  x: Ref,
  weight: Weight | undefined,
  { kvHeads, type }: Sizes,
  group?: number,
): Ref {
  if (weight === undefined) return x;
  const { graph } = lowering;
  const [, features, headDim] = lowering.shapeOf(weight) as [number, number, number];
  const mapped = (heads: number, byHead: Ref): Ref =>
    narrow(
      graph,
      featuresOfHeads(lowering, wide(graph, graph.reshape(byHead, [heads, -1, headDim]), type), weight),
      type,
    );
  if (group === undefined || group === 1)
    return reshapeTo(lowering, mapped(kvHeads, x), [
      kvHeads,
      'blocks',
      ...(group ? [group] : []),
      'size',
      2 * features,
    ]);
  const y = mapped(kvHeads * group, graph.transpose(x, [0, 2, 1, 3, 4]));
  const inBlocks = reshapeTo(lowering, y, [kvHeads, group, 'blocks', 'size', 2 * features]);
  return graph.transpose(inBlocks, [0, 2, 1, 3, 4]);
}

/** In float: x [heads, tokens, hd] -> [heads, tokens, 2F] */
function featuresOfHeads({ graph, weight: bring, shapeOf }: Lowering, x: Ref, weight: Weight): Ref {
  const y = graph.matmul(x, bring(weight, mirrored), { transB: true }); // [Wx, -Wx], so its maximum is c
  const bound = rowMax(graph, y, 2 * shapeOf(weight)[1]!);
  return graph.op('Exp', [graph.op('Sub', [y, bound])]);
}

/** The same of tokens of some rows: x [B, heads, hd] -> [B, heads, 2F]. */
export function featuresOfTokens(lowering: Lowering, x: Ref, weight: Weight | undefined): Ref {
  if (weight === undefined) return x;
  const { graph } = lowering;
  return graph.transpose(featuresOfHeads(lowering, graph.transpose(x, [1, 0, 2]), weight), [1, 0, 2]); // all rows by head
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
