import type { NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';
import { rotateTokens } from '../rope.js';
import { byHead, fromBlocks, toBlocks } from './blocks.js';
import { exactScores, keep } from './ring.js';
import { joinOne, tokenScores, visible } from './ring-decode.js';

/** Softmax attention in float over a sliding window and the first tokens, in blocks of queries; the state is a ring. */
export function windowAttention(
  node: NodeOf<'softmaxAttention'> & { readonly window: { readonly size: number; readonly sinks: number } },
  lowering: Lowering,
  q: Ref,
  k: Ref,
  v: Ref,
): Ref {
  const { heads, kvHeads, headDim, scale, rope, state } = node;
  const { graph } = lowering;
  const ring = { window: node.window.size, sinks: node.window.sinks };
  const turned = (x: Ref, of: number): Ref => (rope ? rotateTokens(lowering, x, of, rope) : x);
  const dims = [kvHeads, ring.sinks + ring.window, headDim];
  if (lowering.decode) {
    const [own, other] = [turned(k, kvHeads), v].map((x, part) => {
      const token = graph.reshape(x, [-1, kvHeads, 1, headDim]);
      return joinOne(lowering, { ring, state, part, dims, leaves: false, narrow: true }, token).seen;
    }) as [Ref, Ref];
    const tokens = graph.reshape(turned(q, heads), [-1, kvHeads, heads / kvHeads, headDim]);
    const weights = graph.op('Softmax', [tokenScores(lowering, ring, tokens, own, scale)], { axis: -1 });
    return graph.reshape(graph.matmul(weights, visible(lowering, ring, other)), [-1, 1, heads * headDim]);
  }
  const known = (part: number, x: Ref): Ref =>
    lowering.float(
      keep(
        lowering,
        { ring, state, part, axis: 1, dims },
        lowering.compute(byHead(lowering, x, kvHeads, headDim)),
      ).seen(),
    );
  const keys = known(0, turned(k, kvHeads));
  const values = known(1, v);
  const group = heads / kvHeads;
  const queries = toBlocks(lowering, turned(q, heads), kvHeads, headDim, group);
  const scores = exactScores(lowering, ring, queries, keys, { kvHeads, group, headDim, scale });
  const out = graph.matmul(graph.op('Softmax', [scores], { axis: -1 }), values); // [g, n, G * C, hd]
  return fromBlocks(lowering, graph.reshape(out, [0, 0, group, -1, headDim]), heads * headDim);
}
