import type { NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';

/** Depthwise causal convolution of rows, in the compute type: x [rows, T, channels] -> the same. */
export function causalConv(node: NodeOf<'causalConv'>, lowering: Lowering, x: Ref): Ref {
  const { graph, decode, shapeOf, weight } = lowering;
  const [channels, , kernel] = shapeOf(node.weight) as [number, number, number];
  const dims = [lowering.rows(1), channels, kernel - 1];
  /** [1, T, channels] and back; one token needs no turning. */
  const turn = (value: Ref, dims: readonly number[]): Ref =>
    decode ? graph.reshape(value, dims) : graph.transpose(value, [0, 2, 1]);
  const inputs = [turn(x, [-1, channels, 1]), weight(node.weight), node.bias === undefined ? '' : weight(node.bias)];
  const [y, next] = graph.msOps('CausalConvWithState', [...inputs, lowering.past(node.state, 0, dims)], 2, {});
  lowering.present(node.state, 0, next!, dims);
  return turn(y!, [-1, 1, channels]);
}
