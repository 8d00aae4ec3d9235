import type { NodeOf } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';

/** Depthwise causal convolution of one row: x [T, channels] -> [T, channels]. */
export function causalConv(node: NodeOf<'causalConv'>, lowering: Lowering, x: Ref): Ref {
  const { graph, decode, shapeOf, weight } = lowering;
  const [channels, , kernel] = shapeOf(node.weight) as [number, number, number];
  const dims = [1, channels, kernel - 1];
  const turned = decode
    ? graph.reshape(x, [1, channels, 1])
    : graph.op('Unsqueeze', [graph.transpose(x, [1, 0]), graph.ints([0])]);
  const inputs = [turned, weight(node.weight), node.bias === undefined ? '' : weight(node.bias)];
  const [y, next] = graph.msOps('CausalConvWithState', [...inputs, lowering.past(node.state, 0, dims)], 2, {});
  lowering.present(node.state, 0, next!, dims);
  return decode ? graph.reshape(y!, [1, channels]) : graph.transpose(graph.reshape(y!, [channels, -1]), [1, 0]);
}
