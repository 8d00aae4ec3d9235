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

/** A node that is to be an operator of our own (own.ts). */
export function isOwn(node: Node): boolean {
  return 'own' in node;
}
