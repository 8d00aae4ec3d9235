import type { NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { float } from '../protobuf.js';
import { ropeTables, rotate, turnAt } from '../rope.js';

/** Causal attention of one row over its whole cache: q [T, heads*hd], k and v [T, kvHeads*hd] -> [T, heads*hd]. */
export function softmaxAttention(node: NodeOf<'softmaxAttention'>, lowering: Lowering, q: Ref, k: Ref, v: Ref): Ref {
  return fused(node) ? groupQueryAttention(node, lowering, q, k, v) : plainAttention(node, lowering, q, k, v);
}

/** Widths that ONNX Runtime's GroupQueryAttention takes. */
function fused({ headDim, rope }: NodeOf<'softmaxAttention'>): boolean {
  return headDim % (rope ? 16 : 8) === 0;
}

/** Longest stretch of tokens in one run: the scores take heads * T * capacity floats. */
export function softmaxPiece({ heads }: NodeOf<'softmaxAttention'>, capacity: number): number {
  return Math.max(16, Math.floor(scoreLimit / (heads * capacity)));
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
  make: ({ past, count }) => ({ dims: [], data: Int32Array.of(past + count) }),
};

/** The cache is bound as past and as present: the operator appends to it in place. */
function groupQueryAttention(node: NodeOf<'softmaxAttention'>, lowering: Lowering, q: Ref, k: Ref, v: Ref): Ref {
  const { heads, kvHeads, headDim, scale, rope, state } = node;
  const { graph } = lowering;
  const row = (x: Ref): Ref => graph.op('Unsqueeze', [x, graph.ints([0])]); // [1, T, width]
  const cache = [1, kvHeads, 'tokens', headDim] as const;
  const inputs = [row(q), row(k), row(v), lowering.past(state, 0, cache), lowering.past(state, 1, cache)];
  inputs.push(lowering.control(lastIndex), lowering.control(total32));
  if (rope) {
    const { cos, sin } = ropeTables(rope);
    inputs.push(lowering.table(cos), lowering.table(sin));
  }
  const [out, keys, values] = graph.msOps('GroupQueryAttention', inputs, 3, {
    num_heads: heads,
    kv_num_heads: kvHeads,
    scale: float(scale),
    do_rotary: rope ? 1 : 0,
  });
  lowering.present(state, 0, keys!);
  lowering.present(state, 1, values!);
  return graph.reshape(out!, [-1, heads * headDim]);
}

const positions: Control = {
  key: 'positions',
  type: 'int64',
  dims: ['count'],
  make: ({ past, count }) => ({
    dims: [count],
    data: BigInt64Array.from({ length: count }, (_, t) => BigInt(past + t)),
  }),
};

const total64: Control = {
  key: 'total int64',
  type: 'int64',
  dims: [1],
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

/** The same by MatMul and Softmax, for the head widths that the operator refuses. */
function plainAttention(node: NodeOf<'softmaxAttention'>, lowering: Lowering, q: Ref, k: Ref, v: Ref): Ref {
  const { heads, kvHeads, headDim, scale, rope, state } = node;
  const { graph } = lowering;
  const turn = rope && turnAt(lowering, rope, lowering.control(positions)); // [T, pairs]
  /** [T, n*hd] -> [n, T, hd], rotated. */
  const split = (x: Ref, n: number, turned: boolean): Ref => {
    const parts = graph.transpose(graph.reshape(x, [-1, n, headDim]), [1, 0, 2]);
    return turned && rope && turn ? rotate(lowering, parts, turn, rope, headDim) : parts;
  };
  const append = (part: number, x: Ref): Ref => {
    const past = lowering.past(state, part, [kvHeads, 'tokens', headDim]);
    const cache = graph.op('ScatterND', [past, lowering.control(newEntries(kvHeads)), x]);
    lowering.present(state, part, cache);
    const valid = graph.slice(cache, 1, 0, lowering.control(total64));
    return graph.op('Unsqueeze', [valid, graph.ints([1])]); // [kvHeads, 1, total, hd]
  };
  const keys = append(0, split(k, kvHeads, true));
  const values = append(1, split(v, kvHeads, false));
  const queries = graph.reshape(split(q, heads, true), [kvHeads, heads / kvHeads, -1, headDim]);
  const scores = graph.matmul(queries, keys, { transB: true, alpha: scale }); // [kvHeads, group, T, total]
  const weights = graph.op('Softmax', [graph.op('Add', [scores, lowering.control(causalMask)])], { axis: -1 });
  const out = graph.transpose(graph.matmul(weights, values), [2, 0, 1, 3]);
  return graph.reshape(out, [-1, heads * headDim]);
}
