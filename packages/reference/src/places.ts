import { type LayerGraph, type Op, operandsOf } from '@dsla/spec';
import { invalid } from './tensor.js';

/** How many vectors a value has: one a token of the served rows, or (after lastToken) one a row. */
export type Place = 'token' | 'row';

/** Every known op: may its operands have one vector a row? */
export const operations: Readonly<Record<Op, boolean>> = {
  input: true,
  embed: true,
  linear: true,
  rmsNorm: true,
  add: true,
  mul: true,
  concat: true,
  slice: true,
  activate: true,
  output: true,
  lastToken: false,
  softmaxAttention: false,
  dualLinearAttention: false,
  causalConv: false,
  selectiveScan: false,
  foldState: false,
  call: false,
};

/**
 * The place of every value, given those of the inputs.
 * @throws DslaError E_INPUT where operands do not fit the node or one another.
 */
export function placesOf(graph: LayerGraph, input: (name: string) => Place): Place[] {
  const places: Place[] = [];
  graph.nodes.forEach((node, index) => {
    const where = `${graph.name} node ${index} (${node.op})`;
    const operands = operandsOf(node).map((x) => places[x]!);
    const [first = 'token'] = operands;
    if (operands.some((place) => place !== first))
      throw invalid(where, 'operands must all be per token or all per row', operands);
    if (first === 'row' && !operations[node.op]) throw invalid(where, 'operands must be per token', operands);
    places.push(node.op === 'input' ? input(node.name) : node.op === 'lastToken' ? 'row' : first);
  });
  return places;
}
