import { type LayerGraph, type Node, type NodeOf, type Op, remap, type Value, type Weight } from '@dsla/spec';
import type { ModelDescription } from '../src/index.js';

// Ways to spoil a description.

/** Every tape that runs in a pass, changed. */
export function mapTapes(d: ModelDescription, change: (graph: LayerGraph) => LayerGraph): ModelDescription {
  return {
    ...d,
    segments: d.segments.map((segment) => ({ ...segment, versions: { default: change(segment.versions.default) } })),
    headAll: change(d.headAll),
  };
}

/** Every node of one kind, changed. */
export function mapNodes<K extends Op>(
  d: ModelDescription,
  op: K,
  change: (node: NodeOf<K>, graph: LayerGraph) => Node,
): ModelDescription {
  let changed = 0;
  const result = mapTapes(d, (graph) => ({
    ...graph,
    nodes: graph.nodes.map((node) => {
      if (node.op !== op) return node;
      changed += 1;
      return change(node as NodeOf<K>, graph);
    }),
  }));
  if (changed === 0) throw new Error(`no ${op} node to change`);
  return result;
}

/** Appends nodes behind `after`; whoever read `after` reads the last of them. `make` is given the index of the first. */
export function insert(graph: LayerGraph, after: Value, make: (first: Value) => readonly Node[]): LayerGraph {
  const added = make(after + 1);
  const moved = graph.nodes.map((_, value) => (value < after ? value : value + added.length));
  return {
    ...graph,
    nodes: [
      ...graph.nodes.slice(0, after + 1),
      ...added,
      ...graph.nodes.slice(after + 1).map((node) => remap(node, moved)),
    ],
  };
}

/** Index of the linear node with this weight, or undefined. */
export function linearOf(graph: LayerGraph, weight: Weight): Value | undefined {
  const index = graph.nodes.findIndex((node) => node.op === 'linear' && node.weight === weight);
  return index < 0 ? undefined : index;
}

/** Index of the n-th node of a kind; n from the end where negative. */
export function nodeAt(graph: LayerGraph, op: Op, n = 0): Value {
  const found = graph.nodes.flatMap((node, index) => (node.op === op ? [index] : [])).at(n);
  if (found === undefined) throw new Error(`${graph.name} has no ${op} number ${n}`);
  return found;
}

/** Gives weights other values; new ones are matrices where `diagonal` made them, else vectors. */
export function override(d: ModelDescription, values: Readonly<Record<Weight, Float32Array>>): ModelDescription {
  const changed = Object.entries(values).map(([name, data]) => {
    const shape = d.weights[name]?.shape ?? diagonals.get(data) ?? [data.length];
    return [name, { tensors: [], shape, initial: () => data }] as const;
  });
  return { ...d, weights: { ...d.weights, ...Object.fromEntries(changed) } };
}

/** Exchanges the places of pairs of weights. */
export function exchange(d: ModelDescription, pairs: readonly (readonly [Weight, Weight])[]): ModelDescription {
  const moved = pairs.flatMap(([a, b]) => [
    [a, d.weights[b]!],
    [b, d.weights[a]!],
  ]);
  return { ...d, weights: { ...d.weights, ...Object.fromEntries(moved) } };
}

/** Rows of [rows, width] in another order. */
export function permuteRows(values: Float32Array, width: number, from: (row: number) => number): Float32Array {
  return values.map((_, i) => values[from(Math.floor(i / width)) * width + (i % width)]!);
}

const diagonals = new WeakMap<Float32Array, readonly number[]>();

/** [width, width] with `value` on the diagonal. */
export function diagonal(width: number, value: number | Float32Array): Float32Array {
  const matrix = new Float32Array(width * width);
  for (let i = 0; i < width; i++) matrix[i * width + i] = typeof value === 'number' ? value : value[i]!;
  diagonals.set(matrix, [width, width]);
  return matrix;
}
