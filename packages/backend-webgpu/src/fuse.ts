import { type LayerGraph, type Node, type NodeOf, operandsOf, type Value, type Weight } from '@dsla/spec';

// Neighbours that one kernel computes.

export interface Fusions {
  /** By the index of a mul: f(gate) * up, without a value for f(gate). */
  readonly gated: ReadonlyMap<Value, Gated>;
  /** By the index of the first: linears of one x, with nothing but outputs in between. */
  readonly grouped: ReadonlyMap<Value, readonly Value[]>;
  /** By the index of the first: linears of slices of one width, all of which are there when the first is. */
  readonly parallel: ReadonlyMap<Value, readonly Value[]>;
  /** By the index of an add: the rmsNorm that follows it. */
  readonly normed: ReadonlyMap<Value, Value>;
  /** By the index of an add: the wide product among its operands, and the operand that it is added to. */
  readonly added: ReadonlyMap<Value, { readonly product: Value; readonly to: Value }>;
  /** By the index of a causalConv or concat: the activate that alone reads it. */
  readonly activated: ReadonlyMap<Value, { readonly fn: Activation; readonly by: Value }>;
  /** Concats that, perhaps activated, a selectiveScan alone reads: it takes their parts where they lie. */
  readonly joints: ReadonlySet<Value>;
  /** By the index of a selectiveScan: the mul by an activated value that alone reads it. */
  readonly scanned: ReadonlyMap<Value, { readonly fn: Activation; readonly gate: Value; readonly by: Value }>;
  /** Slices read by concats and wide products alone, which read them where they lie. */
  readonly sliced: ReadonlySet<Value>;
  /** rmsNorms read by wide products alone. */
  readonly taken: ReadonlySet<Value>;
  /** lastTokens that only such norms read. */
  readonly lasts: ReadonlySet<Value>;
  /** Nodes that another one computes. */
  readonly absorbed: ReadonlySet<Value>;
}

type Activation = NodeOf<'activate'>['fn'];

/** `product`: gate and up are products of one x, which need no values either. */
interface Gated {
  readonly fn: Activation;
  readonly gate: Value;
  readonly up: Value;
  readonly product?: { readonly x: Value; readonly gate: Weight; readonly up: Weight };
}

/** Products that one kernel computes at most: each takes up to three buffers. */
const groupLimit = 3;

/** `wide`: whether the products with a matrix have kernels that can do their neighbours; `widths` of the values. */
export function findFusions(
  { nodes }: LayerGraph,
  wide: (weight: Weight) => boolean,
  widths: readonly number[],
): Fusions {
  const uses = new Map<Value, number>();
  for (const value of nodes.flatMap(operandsOf)) uses.set(value, (uses.get(value) ?? 0) + 1);
  const gated = new Map<Value, Gated>();
  const normed = new Map<Value, Value>();
  const added = new Map<Value, { product: Value; to: Value }>();
  const scanned = new Map<Value, { fn: Activation; gate: Value; by: Value }>();
  const absorbed = new Set<Value>();
  nodes.forEach((node, index) => {
    if (node.op === 'mul') {
      const [by, up] = nodes[node.a]!.op === 'activate' ? [node.a, node.b] : [node.b, node.a];
      const gate = nodes[by]!;
      if (gate.op !== 'activate' || uses.get(by) !== 1) return;
      if (nodes[up]!.op === 'selectiveScan' && uses.get(up) === 1 && gate.x < up) {
        scanned.set(up, { fn: gate.fn, gate: gate.x, by: index });
        absorbed.add(by).add(index);
        return;
      }
      const product = productOf(nodes, gate.x, up, uses);
      gated.set(index, { fn: gate.fn, gate: gate.x, up, ...(product && { product }) });
      absorbed.add(by);
      if (product) absorbed.add(gate.x).add(up);
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
  const activated = new Map<Value, { fn: Activation; by: Value }>();
  nodes.forEach((node, by) => {
    if (node.op !== 'activate' || absorbed.has(by) || uses.get(node.x) !== 1) return;
    const { op } = nodes[node.x]!;
    if (op !== 'causalConv' && op !== 'concat') return;
    activated.set(node.x, { fn: node.fn, by });
    absorbed.add(by);
  });
  const joints = jointsOf(nodes, activated, uses);
  const sliced = new Set([...nodes.keys()].filter((index) => isSliced(nodes, index, absorbed, wide, widths)));
  const grouped = findGroups(nodes, absorbed);
  for (const [first, ...others] of grouped.values())
    for (const index of others) if (index !== first) absorbed.add(index);
  const parallel = findParallel(nodes, new Set([...absorbed, ...grouped.keys()]), sliced, wide, widths);
  for (const [first, ...others] of parallel.values())
    for (const index of others) if (index !== first) absorbed.add(index);
  const taken = new Set([...nodes.keys()].filter((index) => isTaken(nodes, index, wide)));
  const isLast = (index: Value) =>
    nodes[index]!.op === 'lastToken' && readersOf(nodes, index).every((at) => taken.has(at));
  const lasts = new Set([...nodes.keys()].filter(isLast));
  return { gated, grouped, parallel, normed, added, activated, joints, scanned, sliced, taken, lasts, absorbed };
}

/** Parts that are inputs could be overwritten before the scan. */
function jointsOf(
  nodes: readonly Node[],
  activated: Fusions['activated'],
  uses: ReadonlyMap<Value, number>,
): Set<Value> {
  const read = nodes.flatMap((node) => (node.op === 'selectiveScan' ? [node.dt, node.b, node.c] : []));
  const joints = read.flatMap((value) => {
    const [plain] = [...activated].find(([, { by }]) => by === value) ?? [value];
    const node = nodes[plain]!;
    if (node.op !== 'concat' || uses.get(value) !== 1) return [];
    return [node.a, node.b].some((part) => nodes[part]!.op === 'input') ? [] : [plain];
  });
  return new Set(joints);
}

/** Whether a slice is of a value that stays, and all that read it can read a part of one. */
function isSliced(
  nodes: readonly Node[],
  index: Value,
  absorbed: ReadonlySet<Value>,
  wide: (weight: Weight) => boolean,
  widths: readonly number[],
): boolean {
  const slice = nodes[index]!;
  if (slice.op !== 'slice' || nodes[slice.x]!.op === 'input') return false;
  const aligned = slice.from % 8 === 0 && widths[slice.x]! % 8 === 0;
  return readersOf(nodes, index).every((at) => {
    const reader = nodes[at]!;
    return reader.op === 'concat' || (reader.op === 'linear' && aligned && !absorbed.has(at) && wide(reader.weight));
  });
}

/** Whether a node is a norm that only wide products read, before its own input may be overwritten. */
function isTaken(nodes: readonly Node[], index: Value, wide: (weight: Weight) => boolean): boolean {
  const norm = nodes[index]!;
  if (norm.op !== 'rmsNorm') return false;
  const readers = readersOf(nodes, index);
  const products = readers.every((at) => {
    const reader = nodes[at]!;
    return reader.op === 'linear' && wide(reader.weight);
  });
  const of = nodes[norm.x]!;
  const source = of.op === 'lastToken' ? nodes[of.x]! : of;
  if (!products || source.op !== 'input') return products;
  const overwritten = nodes.findIndex((node, at) =>
    nodes.some((other) => other.op === 'output' && other.name === source.name && (node === other || other.x === at)),
  );
  // A product may be put off to where its value is read.
  return (
    overwritten < 0 ||
    readers
      .flatMap((at) => [at, ...readersOf(nodes, at).flatMap((by) => [by, ...readersOf(nodes, by)])])
      .every((at) => at < overwritten || nodes[at]!.op === 'output')
  );
}

function readersOf(nodes: readonly Node[], value: Value): Value[] {
  return [...nodes.keys()].filter((at) => operandsOf(nodes[at]!).includes(value));
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

/** Linears of slices that are read where they lie; those of a later one must be of a value that is there by then. */
function findParallel(
  nodes: readonly Node[],
  others: ReadonlySet<Value>,
  sliced: ReadonlySet<Value>,
  wide: (weight: Weight) => boolean,
  widths: readonly number[],
): Map<Value, Value[]> {
  const parallel = new Map<Value, Value[]>();
  const madeWith = new Map<Value, Value>(); // linears of a group by its first
  nodes.forEach((node, index) => {
    if (node.op !== 'linear' || others.has(index) || !sliced.has(node.x) || !wide(node.weight)) return;
    const { x } = nodes[node.x] as NodeOf<'slice'>;
    const from = madeWith.get(x) ?? x;
    const first = [...parallel].find(
      ([at, group]) =>
        from < at &&
        group.length < groupLimit &&
        widths[(nodes[at] as NodeOf<'linear'>).x] === widths[node.x] &&
        group.every((other) => (nodes[other] as NodeOf<'linear'>).x !== node.x),
    )?.[0];
    madeWith.set(index, first ?? index);
    if (first === undefined) parallel.set(index, [index]);
    else parallel.get(first)!.push(index);
  });
  return new Map([...parallel].filter(([, group]) => group.length > 1));
}
