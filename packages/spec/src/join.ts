import type { LayerGraph, Node, Value } from './graph.js';
import { remap } from './inline.js';

/**
 * Consecutive tapes as one. A value written by one and read by a later one flows inside; of the outputs only those that
 * `keep` names remain.
 */
export function joinGraphs(graphs: readonly LayerGraph[], keep: ReadonlySet<string>): LayerGraph {
  if (graphs.length === 1) return graphs[0]!;
  const nodes: Node[] = [];
  const named = new Map<string, Value>(); // current value of every name
  const written = new Set<string>();
  for (const graph of graphs) {
    const moved: Value[] = [];
    for (const node of graph.nodes) {
      if (node.op === 'input' && named.has(node.name)) moved.push(named.get(node.name)!);
      else if (node.op === 'output') {
        named.set(node.name, moved[node.x]!);
        written.add(node.name);
        moved.push(moved[node.x]!);
      } else {
        const index = nodes.push(remap(node, moved)) - 1;
        if (node.op === 'input') named.set(node.name, index);
        moved.push(index);
      }
    }
  }
  for (const name of written) if (keep.has(name)) nodes.push({ op: 'output', name, x: named.get(name)! });
  const states = new Map(graphs.flatMap(({ states }) => states.map((spec) => [spec.name, spec] as const)));
  return { name: `${graphs[0]!.name}..${graphs.at(-1)!.name}`, nodes, states: [...states.values()] };
}
