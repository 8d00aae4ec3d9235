import type { Node, NodeOf, Weight } from '@dsla/spec';
import type { Tensor } from '@tensorflow/tfjs-core';
import * as tf from '@tensorflow/tfjs-core';
import type { Frame } from './frame.js';
import { vjp } from './gradients.js';
import { evaluate } from './lower.js';
import { selectiveScanBackward } from './nodes/selective-scan.js';

/** Gradients by the operands and weights of a node that are wanted. (A type alias: an interface cannot leave a tidy.) */
export type NodeGradients = {
  /** By operand; nothing for one that is not wanted. */
  operands: (Tensor | undefined)[];
  weights: Record<Weight, Tensor>;
};

/** Which gradients a node is asked for. */
export interface Wanted {
  readonly operands: readonly boolean[];
  readonly weights: readonly Weight[];
}

/** The gradient of a node whose value received `dy`. Where none is written by hand, the node is computed again and taped. */
export function backward(node: Node, xs: readonly Tensor[], dy: Tensor, frame: Frame, wanted: Wanted): NodeGradients {
  switch (node.op) {
    case 'linear':
      return linear(node, xs[0]!, dy, frame, wanted);
    case 'embed':
      return { operands: [], weights: { [node.table]: embed(node, dy, frame) } };
    case 'selectiveScan': {
      const all = selectiveScanBackward(node, xs, dy, frame, frame.counts.length);
      return { operands: all.slice(0, 4), weights: { [node.logA]: all[4]!, [node.d]: all[5]! } };
    }
    default:
      return taped(node, xs, dy, frame, wanted);
  }
}

function taped(node: Node, xs: readonly Tensor[], dy: Tensor, frame: Frame, wanted: Wanted): NodeGradients {
  const own = xs.map((x) => tf.clone(x)); // a value may be two operands, each with a gradient of its own
  const chosen = own.filter((_, index) => wanted.operands[index]);
  const sources = [...chosen, ...wanted.weights.map((name) => frame.weight(name))];
  const found = vjp(() => evaluate(node, own, frame), sources, dy);
  const operands = xs.map((_, index) => (wanted.operands[index] ? found.shift() : undefined));
  return { operands, weights: Object.fromEntries(wanted.weights.map((name, index) => [name, found[index]!])) };
}

/** Every product in the layout that the wasm engine multiplies ten times faster. */
function linear(node: NodeOf<'linear'>, x: Tensor, dy: Tensor, frame: Frame, wanted: Wanted): NodeGradients {
  const weights: Record<Weight, Tensor> = {};
  if (wanted.weights.includes(node.weight)) weights[node.weight] = tf.matMul(tf.transpose(dy), x);
  if (node.bias !== undefined && wanted.weights.includes(node.bias)) weights[node.bias] = tf.sum(dy, 0);
  const dx = wanted.operands[0] ? tf.matMul(dy, tf.transpose(frame.transposed(node.weight))) : undefined;
  return { operands: [dx], weights };
}

/** Adds up the rows of every token id: the gather kernel's own gradient is missing on wasm. */
function embed(node: NodeOf<'embed'>, dy: Tensor, frame: Frame): Tensor {
  const ids = tf.tensor2d(frame.ids, [frame.ids.length, 1], 'int32');
  return tf.scatterND(ids, dy, frame.weight(node.table).shape as [number, number]);
}
