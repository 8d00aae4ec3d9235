import type { Node, Op } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import type { Frame, Plain, Stateful } from './frame.js';
import { causalConv } from './nodes/causal-conv.js';
import { dualLinearAttention } from './nodes/dual-linear-attention.js';
import { activate, add, concat, embed, lastToken, linear, mul, rmsNorm, slice } from './nodes/plain.js';
import { selectiveScan } from './nodes/selective-scan.js';
import { softmaxAttention } from './nodes/softmax-attention.js';

const plain: { readonly [K in Op]?: Plain<K> } = {
  embed,
  linear,
  rmsNorm,
  add,
  mul,
  concat,
  slice,
  activate,
  lastToken,
};

const stateful: { readonly [K in Op]?: Stateful<K> } = {
  softmaxAttention,
  dualLinearAttention,
  causalConv,
  selectiveScan,
};

export function plainOf(node: Node): Plain<Op> | undefined {
  return plain[node.op] as Plain<Op> | undefined;
}

export function statefulOf(node: Node): Stateful<Op> | undefined {
  return stateful[node.op] as Stateful<Op> | undefined;
}

/** A node for training: as many sequences as the frame has rows, from empty states. */
export function evaluate(node: Node, xs: readonly Tensor[], frame: Frame): Tensor {
  const plain = plainOf(node);
  return plain ? plain(node as never, xs, frame) : statefulOf(node)!(node as never, xs, frame, frame.counts.length).y;
}
