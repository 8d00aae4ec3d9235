import { type LayerGraph, type Node, operandsOf, type Value } from '@dsla/spec';

// Which results are worth more digits than a float16 has.

/** Why a result is float32 whatever the compute type. */
export type Precise = 'stream' | 'query-or-key' | 'logits';

/**
 * Nodes whose results are float32: logits; the residual stream, to which every layer adds: values that nothing reads but
 * additions, norms, and what hands them on to those; and queries and keys, which are then rounded once, after rotation.
 */
export function preciseNodes({ nodes }: LayerGraph): ReadonlyMap<Node, Precise> {
  const precise = new Map<Node, Precise>();
  // Readers come after what they read.
  for (const [value, node] of [...nodes.entries()].reverse()) {
    const readers = readersOf(nodes, value);
    const streams = readers.every((reader) => ends.has(reader.op) || (links.has(reader.op) && precise.has(reader)));
    if (isLogits(readers)) precise.set(node, 'logits');
    else if (makers.has(node.op) && readers.length > 0 && readers.every((reader) => asQueryOrKey(reader, value)))
      precise.set(node, 'query-or-key');
    else if (links.has(node.op) && streams) precise.set(node, 'stream');
  }
  return precise;
}

const links: ReadonlySet<Node['op']> = new Set(['input', 'embed', 'add', 'lastToken', 'concat']);
const ends: ReadonlySet<Node['op']> = new Set(['rmsNorm', 'add', 'output']);
const makers: ReadonlySet<Node['op']> = new Set(['input', 'linear']);

function readersOf(nodes: readonly Node[], value: Value): Node[] {
  return nodes.filter((node) => operandsOf(node).includes(value));
}

/** Whether a node takes a value as queries or as keys, or hands it to a tape that does, by the names that @dsla/models gives. */
function asQueryOrKey(node: Node, value: Value): boolean {
  if (node.op === 'output') return node.name === 'q' || node.name === 'k';
  if (node.op !== 'softmaxAttention' && node.op !== 'dualLinearAttention') return false;
  const times = operandsOf(node).filter((operand) => operand === value).length;
  return times === 1 && (node.q === value || node.k === value);
}

function isLogits(readers: readonly Node[]): boolean {
  return readers.some((reader) => reader.op === 'output' && reader.name === 'logits');
}
