import type { Named, Node } from '@dsla/spec';
import type { Ref } from '../emit.js';
import type { Lowering } from '../lowering.js';
import { softmaxAttention, softmaxPiece } from './softmax-attention.js';

/** Nodes that read or write a state: they serve one row a run. */
export type Stateful = Extract<Node, { op: 'softmaxAttention' }>;

export function isStateful(node: Node): node is Stateful {
  return node.op in stateful;
}

const stateful: Readonly<Record<Stateful['op'], true>> = {
  softmaxAttention: true,
};

/** Adds a node to a model; the result is its value, [T, width], if it has one. */
export function lowerStateful(node: Stateful, lowering: Lowering, value: (index: number) => Ref): Ref | undefined {
  switch (node.op) {
    case 'softmaxAttention':
      return softmaxAttention(node, lowering, value(node.q), value(node.k), value(node.v));
  }
}

/** Most tokens of a row that one run may serve, so that its intermediate values stay small. */
export function pieceOf(node: Stateful, stores: Named<{ readonly tokens: number }>): number {
  return node.op === 'softmaxAttention' ? softmaxPiece(node, stores[node.state]!.tokens) : 2048;
}
