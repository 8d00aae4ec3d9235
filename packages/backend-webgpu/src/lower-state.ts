import type { NodeOf } from '@dsla/spec';
import { type Builder, type Operand, perElement, result, ropeRef, vector } from './builder.js';
import { append, keep } from './kernels/cache.js';
import { causalConv, convSize, convState } from './kernels/causal-conv.js';
import { rotate } from './kernels/rope.js';
import { scanSize, selectiveScan } from './kernels/selective-scan.js';
import { cachedAttention, windowAttention } from './kernels/softmax-attention.js';
import type { BufferRef } from './program.js';

export function lowerAttention(builder: Builder, node: NodeOf<'softmaxAttention'>): Operand {
  const { type, emit, operand } = builder;
  const { heads, kvHeads, headDim, rope, window, state } = node;
  const [q, k, v] = [operand(node.q), operand(node.k), operand(node.v)];
  const y = result(builder, heads * headDim, 'token');
  const [keys, values] = [statePart(state, 0), statePart(state, 1)];
  if (!window) {
    const info: BufferRef = { kind: 'info', state };
    const ropes = ropeRef(rope);
    emit(append(kvHeads, headDim, type, rope), [k.ref, v.ref, ...ropes, info, keys, values], perElement(k));
    const buffers = [q.ref, ...ropes, keys, values, info, y.ref];
    emit(cachedAttention(node, type), buffers, (view) => [view.tokens, heads, 1]);
    return y;
  }
  const turned = turnedKeys(builder, node, k);
  const buffers = [q.ref, ...ropeRef(rope), turned.ref, v.ref, keys, values, y.ref];
  emit(windowAttention(node, window, type), buffers, (view) => [view.tokens, heads, 1]);
  emit(keep(kvHeads, headDim, window, type, type), [turned.ref, keys], perElement(k));
  emit(keep(kvHeads, headDim, window, type, type), [v.ref, values], perElement(v));
  return y;
}

/** The keys of the step after rotation: k itself without rope. */
export function turnedKeys(
  builder: Builder,
  { headDim, rope }: Pick<NodeOf<'softmaxAttention'>, 'headDim' | 'rope'>,
  k: Operand,
  replay = false,
): Operand {
  if (!rope) return k;
  const turned = { ...k, ref: builder.temp(k.width, builder.type, replay ? 'past' : 'token') };
  builder.emit(
    rotate(rope, headDim, turned, builder.type),
    [k.ref, ...ropeRef(rope), turned.ref],
    perElement(k),
    replay,
  );
  return turned;
}

export function lowerConv(builder: Builder, node: NodeOf<'causalConv'>): Operand {
  const { type, emit } = builder;
  const x = builder.operand(node.x);
  const taps = builder.shapeOf(node.weight)[2]!;
  const y = result(builder, x.width, 'token');
  const state = statePart(node.state, 0);
  const weights = [vector(node.weight), ...(node.bias === undefined ? [] : [vector(node.bias)])];
  const kernel = causalConv(y, x, taps, type, node.bias !== undefined);
  emit(kernel, [x.ref, ...weights, state, y.ref], perElement(y));
  if (taps > 1) emit(convState(x, taps, type), [x.ref, state], (view) => [Math.ceil(x.width / convSize), view.rows, 1]);
  return y;
}

export function lowerScan(builder: Builder, node: NodeOf<'selectiveScan'>): Operand {
  const { operand } = builder;
  const [x, dt, b, c] = [operand(node.x), operand(node.dt), operand(node.b), operand(node.c)];
  const n = builder.shapeOf(node.logA)[2]!;
  const y = result(builder, x.width, 'token');
  builder.emit(
    selectiveScan(node.heads, x.width, n, builder.type),
    [x.ref, dt.ref, b.ref, c.ref, vector(node.logA), vector(node.d), statePart(node.state, 0), y.ref],
    (view) => [Math.ceil(x.width / scanSize), view.rows, 1],
  );
  return y;
}

export function statePart(state: string, part: number): BufferRef {
  return { kind: 'state', state, part };
}
