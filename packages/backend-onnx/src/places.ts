import { operandsOf } from '@dsla/spec';
import { invalid } from './errors.js';
import { isStateful } from './nodes/stateful.js';
import type { Tape } from './tape.js';

/** How many vectors a value has: one a token of the served rows, or (after lastToken) one a row. */
export type Place = 'token' | 'row';

/**
 * The place of every value, given those of the inputs.
 * @throws DslaError E_INPUT where operands do not fit the node or one another.
 */
export function placesOf({ graph }: Tape, input: (name: string) => Place): Place[] {
  const places: Place[] = [];
  graph.nodes.forEach((node, index) => {
    const where = `${graph.name} node ${index} (${node.op})`;
    const operands = operandsOf(node).map((value) => places[value]!);
    const [first = 'token'] = operands;
    if (operands.some((place) => place !== first))
      throw invalid(where, 'operands must all be per token or all per row', operands);
    if (first === 'row' && (node.op === 'lastToken' || isStateful(node)))
      throw invalid(where, 'operands must be per token', operands);
    places.push(node.op === 'input' ? input(node.name) : node.op === 'lastToken' ? 'row' : first);
  });
  return places;
}
