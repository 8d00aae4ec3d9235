import { inferWidths, inlineCalls, type LayerGraph, type Node, type Weight } from '@dsla/spec';

/** A checked tape without calls, with what is known of its values and weights. */
export interface Tape {
  readonly graph: LayerGraph;
  readonly widths: readonly number[];
  shapeOf(weight: Weight): readonly number[];
}

/** @throws DslaError E_INPUT */
export function tapeOf(layer: LayerGraph, shapeOf: (weight: Weight) => readonly number[]): Tape {
  const graph = inlineCalls(layer);
  inferWidths(layer, shapeOf); // with its calls, whose arguments are checked too
  return { graph, widths: inferWidths(graph, shapeOf), shapeOf };
}

/** The values that a node reads. */
export function readsOf(node: Node): readonly number[] {
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
