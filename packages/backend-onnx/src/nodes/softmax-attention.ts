import type { NodeOf } from '@dsla/spec';
import { attentionOperator } from '../cuda/attention.js';
import type { Dialect } from '../dialect.js';
import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { float } from '../protobuf.js';
import { ropeTables, rotateTokens } from '../rope.js';
import { isOwn } from '../tape.js';
import { byHead } from './blocks.js';
import { windowAttention } from './window-attention.js';

/** Attention whose q, k and v are one value, [N, (heads + 2 kvHeads) * headDim]. */
export type PackedAttention = NodeOf<'softmaxAttention'> & { readonly packed: true };

function isPacked(node: NodeOf<'softmaxAttention'>): node is PackedAttention {
  return 'packed' in node;
}

/** Causal attention of one row, or of one token of each of several rows, which lead then: q [1, T, heads*hd], k and v [1, T, kvHeads*hd] -> [1, T, heads*hd]. */
export function softmaxAttention(node: NodeOf<'softmaxAttention'>, lowering: Lowering, q: Ref, k: Ref, v: Ref): Ref {
  const { window } = node;
  if (isOwn(node)) return ownAttention(node, lowering, q, k, v);
  if (!window && fused(node, lowering.dialect)) return groupQueryAttention(node, lowering, q, k, v);
  const [queries, keys, values] = [q, k, v].map(lowering.float) as [Ref, Ref, Ref];
  if (window) return lowering.compute(windowAttention({ ...node, window }, lowering, queries, keys, values));
  return lowering.compute(plainAttention(node, lowering, queries, keys, values));
}

/** Widths that ONNX Runtime's GroupQueryAttention takes. */
export function fused({ headDim, rope }: NodeOf<'softmaxAttention'>, dialect: Dialect): boolean {
  return headDim <= dialect.fusedHead && headDim % 8 === 0 && (!rope || rope.rotaryDim % 16 === 0);
}

/** Longest stretch of tokens in one run: unless it is made in pieces, the scores take heads * T * capacity floats. */
export function softmaxPiece(node: NodeOf<'softmaxAttention'>, dialect: Dialect, capacity: number): number {
  if (dialect.flash && fused(node, dialect)) return Number.POSITIVE_INFINITY;
  return Math.max(16, Math.floor(scoreLimit / (node.heads * capacity)));
}

const scoreLimit = 1 << 26; // floats

const lastIndex: Control = {
  key: 'total - 1',
  type: 'int32',
  dims: [1],
  make: ({ past, count }) => ({ dims: [1], data: Int32Array.of(past + count - 1) }),
};

const total32: Control = {
  key: 'total int32',
  type: 'int32',
  dims: [],
  onHost: true,
  make: ({ past, count }) => ({ dims: [], data: Int32Array.of(past + count) }),
};

/** The cache is bound as past and as present: the operator appends to it in place. */
function groupQueryAttention(node: NodeOf<'softmaxAttention'>, lowering: Lowering, q: Ref, k: Ref, v: Ref): Ref {
  const { heads, kvHeads, headDim, scale, rope, state } = node;
  const { graph, dialect } = lowering;
  const cache = [lowering.rows(1), kvHeads, 'tokens', headDim];
  const given = isPacked(node) ? [q, '', ''] : [q, k, v];
  const inputs = [...given, lowering.past(state, 0, cache), lowering.past(state, 1, cache)];
  // Of one token the operator wants to know no more than that it is not the first of a prompt.
  const total = lowering.decode && dialect.replays ? lowering.capacity(state) : lowering.control(total32);
  inputs.push(lowering.control(lastIndex), total);
  if (rope) {
    const { cos, sin } = ropeTables(rope, { type: dialect.compute });
    inputs.push(lowering.table(cos), lowering.table(sin));
  }
  const [out, keys, values] = graph.msOps('GroupQueryAttention', inputs, 3, {
    num_heads: heads,
    kv_num_heads: kvHeads,
    scale: float(scale),
    do_rotary: rope ? 1 : 0,
  });
  lowering.present(state, 0, keys!, cache);
  lowering.present(state, 1, values!, cache);
  return out!;
}

/** One token of one row: one kernel, where ONNX Runtime's operator takes several. The cache is bound as past and as present. */
function ownAttention(node: NodeOf<'softmaxAttention'>, lowering: Lowering, q: Ref, k: Ref, v: Ref): Ref {
  const { heads, kvHeads, headDim, scale, rope, state } = node;
  const cache = [lowering.rows(1), kvHeads, 'tokens', headDim];
  const packed = isPacked(node);
  const inputs = packed ? [q] : [q, k, v];
  inputs.push(lowering.past(state, 0, cache), lowering.past(state, 1, cache), lowering.control(lastIndex));
  if (rope) {
    const { cos, sin } = ropeTables(rope, { type: lowering.dialect.compute });
    inputs.push(lowering.table(cos), lowering.table(sin));
  }
  const form = { heads, kvHeads, headDim, rotaryDim: rope?.rotaryDim ?? 0, scale, packed };
  const [out, keys, values] = lowering.graph.own(attentionOperator(form), inputs);
  lowering.present(state, 0, keys!, cache);
  lowering.present(state, 1, values!, cache);
  return out!;
}

const total64: Control = {
  key: 'total int64',
  type: 'int64',
  dims: [1],
  onHost: true,
  make: ({ past, count }) => ({ dims: [1], data: BigInt64Array.of(BigInt(past + count)) }),
};

/** [T, total]: 0 where query past + t sees key j <= past + t, -inf elsewhere. */
const causalMask: Control = {
  key: 'causal mask',
  type: 'float',
  dims: ['count', 'total'],
  make({ past, count }) {
    const width = past + count;
    const data = new Float32Array(count * width);
    for (let t = 0; t < count; t++) data.fill(Number.NEGATIVE_INFINITY, t * width + past + t + 1, (t + 1) * width);
    return { dims: [count, width], data };
  },
};

/** Where the new tokens lie in a cache: (head, position) of every [kvHeads, T] entry. */
function newEntries(kvHeads: number): Control {
  return {
    key: `cache entries ${kvHeads}`,
    type: 'int64',
    dims: [kvHeads, 'count', 2],
    make({ past, count }) {
      const data = new BigInt64Array(kvHeads * count * 2);
      for (let entry = 0; entry < kvHeads * count; entry++) {
        data[2 * entry] = BigInt(Math.floor(entry / count));
        data[2 * entry + 1] = BigInt(past + (entry % count));
      }
      return { dims: [kvHeads, count, 2], data };
    },
  };
}

/** The same in float by MatMul and Softmax, where the operator refuses. */
function plainAttention(node: NodeOf<'softmaxAttention'>, lowering: Lowering, q: Ref, k: Ref, v: Ref): Ref {
  const { heads, kvHeads, headDim, scale, rope, state } = node;
  const { graph } = lowering;
  const turned = (x: Ref, of: number): Ref => (rope ? rotateTokens(lowering, x, of, rope) : x);
  const append = (part: number, x: Ref): Ref => {
    const dims = [kvHeads, 'tokens', headDim];
    const past = lowering.past(state, part, dims);
    const cache = graph.op('ScatterND', [past, lowering.control(newEntries(kvHeads)), lowering.compute(x)]);
    lowering.present(state, part, cache, dims);
    const valid = graph.slice(cache, 1, 0, lowering.control(total64));
    return graph.op('Unsqueeze', [lowering.float(valid), graph.ints([1])]); // [kvHeads, 1, total, hd]
  };
  const keys = append(0, byHead(lowering, turned(k, kvHeads), kvHeads, headDim));
  const values = append(1, byHead(lowering, v, kvHeads, headDim));
  const queries = graph.reshape(byHead(lowering, turned(q, heads), heads, headDim), [
    kvHeads,
    heads / kvHeads,
    -1,
    headDim,
  ]);
  const scores = graph.matmul(queries, keys, { transB: true, alpha: scale }); // [kvHeads, group, T, total]
  const weights = graph.op('Softmax', [graph.op('Add', [scores, lowering.control(causalMask)])], { axis: -1 });
  const out = graph.transpose(graph.matmul(weights, values), [2, 0, 1, 3]);
  return graph.reshape(out, [1, -1, heads * headDim]);
}
