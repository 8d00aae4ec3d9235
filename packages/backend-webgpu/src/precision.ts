import { type LayerGraph, type Node, operandsOf, type Value } from '@dsla/spec';

// Which results are worth more digits than a float16 has.

/**
 * Nodes whose results are float32 whatever the compute type: logits, and the residual stream, to which every layer adds: values
 * that nothing reads but additions, norms, and what hands them on to those.
 */
export function preciseNodes({ nodes }: LayerGraph): ReadonlySet<Node> {
  const precise = new Set<Node>();
  // Readers come after what they read.
  for (const [value, node] of [...nodes.entries()].reverse()) {
    const readers = readersOf(nodes, value);
    const streams = readers.every((reader) => ends.has(reader.op) || (links.has(reader.op) && precise.has(reader)));
    if (isLogits(readers) || (links.has(node.op) && streams)) precise.add(node);
  }
  return precise;
}

const links: ReadonlySet<Node['op']> = new Set(['input', 'embed', 'add', 'lastToken', 'concat']);
const ends: ReadonlySet<Node['op']> = new Set(['rmsNorm', 'add', 'output']);

function readersOf(nodes: readonly Node[], value: Value): Node[] {
  return nodes.filter((node) => operandsOf(node).includes(value));
}

function isLogits(readers: readonly Node[]): boolean {
  return readers.some((reader) => reader.op === 'output' && reader.name === 'logits');
}
