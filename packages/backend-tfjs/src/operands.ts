import type { Node, Value } from '@dsla/spec';

/** The values that a node reads, in the order in which its lowering takes them. */
export function operandsOf(node: Node): readonly Value[] {
  switch (node.op) {
    case 'input':
    case 'embed':
    case 'foldState':
      return [];
    case 'add':
    case 'mul':
    case 'concat':
      return [node.a, node.b];
    case 'softmaxAttention':
      return [node.q, node.k, node.v];
    case 'dualLinearAttention':
      return [node.q, node.k, node.v, node.gates];
    case 'selectiveScan':
      return [node.x, node.dt, node.b, node.c];
    case 'call':
      return node.inputs;
    default:
      return [node.x];
  }
}
