import { type LayerGraph, type Node, type NodeOf, operandsOf, type Value, type Weight } from '@dsla/spec';

// Neighbours that one kernel computes.

export interface Fusions {
  /** By the index of a mul: f(gate) * up, without a value for f(gate). */
  readonly gated: ReadonlyMap<Value, Gated>;
  /** By the index of the first: linears of one x, with nothing but outputs in between. */
  readonly grouped: ReadonlyMap<Value, readonly Value[]>;
  /** By the index of an add: the rmsNorm that follows it. */
  readonly normed: ReadonlyMap<Value, Value>;
  /** By the index of an add: the wide product among its operands, and the operand that it is added to. */
  readonly added: ReadonlyMap<Value, { readonly product: Value; readonly to: Value }>;
  /** rmsNorms read by wide products alone. */
  readonly taken: ReadonlySet<Value>;
  /** Nodes that another one computes. */
  readonly absorbed: ReadonlySet<Value>;
}

/** `product`: gate and up are products of one x, which need no values either. */
interface Gated {
  readonly fn: NodeOf<'activate'>['fn'];
  readonly gate: Value;
  readonly up: Value;
  readonly product?: { readonly x: Value; readonly gate: Weight; readonly up: Weight };
}

/** Products that one kernel computes at most: each takes up to three buffers. */
const groupLimit = 3;

/** `wide`: whether the products with a matrix have kernels that can do their neighbours. */
export function findFusions({ nodes }: LayerGraph, wide: (weight: Weight) => boolean): Fusions {
  const uses = new Map<Value, number>();
  for (const value of nodes.flatMap(operandsOf)) uses.set(value, (uses.get(value) ?? 0) + 1);
  const gated = new Map<Value, Gated>();
  const normed = new Map<Value, Value>();
  const added = new Map<Value, { product: Value; to: Value }>();
  const absorbed = new Set<Value>();
  nodes.forEach((node, index) => {
    if (node.op === 'mul') {
      const gate = nodes[node.a]!;
      if (gate.op !== 'activate' || uses.get(node.a) !== 1) return;
      const product = productOf(nodes, gate.x, node.b, uses);
      gated.set(index, { fn: gate.fn, gate: gate.x, up: node.b, ...(product && { product }) });
      absorbed.add(node.a);
      if (product) absorbed.add(gate.x).add(node.b);
    }
    if (node.op === 'add') {
      const product = [node.b, node.a].find((value) => {
        const of = nodes[value]!;
        if (of.op !== 'linear' || uses.get(value) !== 1 || !wide(of.weight)) return false;
        return index === value + 1 || nodes[of.x]!.op !== 'input'; // which could be overwritten in between
      });
      if (product !== undefined) {
        added.set(index, { product, to: product === node.a ? node.b : node.a });
        absorbed.add(product);
      }
      const next = nodes[index + 1];
      if (next?.op !== 'rmsNorm' || next.x !== index) return;
      normed.set(index, index + 1);
      absorbed.add(index + 1);
    }
  });
  const grouped = findGroups(nodes, absorbed);
  for (const [first, ...others] of grouped.values())
    for (const index of others) if (index !== first) absorbed.add(index);
  const taken = new Set([...nodes.keys()].filter((index) => isTaken(nodes, index, wide)));
  return { gated, grouped, normed, added, taken, absorbed };
}

/** Whether a node is a norm that only wide products read, before its own input may be overwritten. */
function isTaken(nodes: readonly Node[], index: Value, wide: (weight: Weight) => boolean): boolean {
  const norm = nodes[index]!;
  if (norm.op !== 'rmsNorm') return false;
  const readersOf = (value: Value) => [...nodes.keys()].filter((at) => operandsOf(nodes[at]!).includes(value));
  const readers = readersOf(index);
  const products = readers.every((at) => {
    const reader = nodes[at]!;
    return reader.op === 'linear' && wide(reader.weight);
  });
  const source = nodes[norm.x]!;
  if (!products || source.op !== 'input') return products;
  const overwritten = nodes.findIndex((node, at) =>
    nodes.some((other) => other.op === 'output' && other.name === source.name && (node === other || other.x === at)),
  );
  // A product may be put off to where its value is read.
  return (
    overwritten < 0 ||
    readers
      .flatMap((at) => [at, ...readersOf(at).flatMap((of) => [of, ...readersOf(of)])])
      .every((at) => at < overwritten || nodes[at]!.op === 'output')
  );
}

function productOf(
  nodes: readonly Node[],
  gate: Value,
  up: Value,
  uses: ReadonlyMap<Value, number>,
): Gated['product'] | undefined {
  const [a, b] = [nodes[gate]!, nodes[up]!];
  if (a.op !== 'linear' || b.op !== 'linear' || a.x !== b.x || gate === up) return undefined;
  if (a.bias !== undefined || b.bias !== undefined || uses.get(gate) !== 1 || uses.get(up) !== 1) return undefined;
  return { x: a.x, gate: a.weight, up: b.weight };
}

function findGroups(nodes: readonly Node[], absorbed: ReadonlySet<Value>): Map<Value, Value[]> {
  const groups = new Map<Value, Value[]>();
  let open: Value[] = [];
  nodes.forEach((node, index) => {
    if (node.op === 'output') return;
    const first = nodes[open[0] ?? -1];
    const joins = node.op === 'linear' && first?.op === 'linear' && first.x === node.x && open.length < groupLimit;
    if (joins && !absorbed.has(index)) {
      open.push(index);
      groups.set(open[0]!, open);
    } else open = node.op === 'linear' && !absorbed.has(index) ? [index] : [];
  });
  return groups;
}
