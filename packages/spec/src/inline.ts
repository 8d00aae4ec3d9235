import type { LayerGraph, Node, NodeOf, Value } from './graph.js';

/** Replaces every `call` whose kind is unknown by its body. Values keep their order; the first output of a body is its value. */
export function inlineCalls(graph: LayerGraph, knows: (kind: string) => boolean = () => false): LayerGraph {
  if (!graph.nodes.some((node) => node.op === 'call' && !knows(node.kind))) return graph;
  const nodes: Node[] = [];
  const states = [...graph.states];
  const moved: Value[] = [];
  for (const node of graph.nodes) {
    if (node.op !== 'call' || knows(node.kind)) {
      moved.push(nodes.push(remap(node, moved)) - 1);
      continue;
    }
    const body = inlineCalls(node.body, knows);
    states.push(...body.states.filter((spec) => !states.some(({ name }) => name === spec.name)));
    moved.push(
      splice(
        nodes,
        body,
        node.inputs.map((value) => moved[value]!),
      ),
    );
  }
  return { name: graph.name, nodes, states };
}

/** Appends the nodes of `body` with its inputs bound to `args`; returns the value of its first output. */
function splice(nodes: Node[], body: LayerGraph, args: readonly Value[]): Value {
  const inner: Value[] = [];
  let nextArg = 0;
  let result: Value | undefined;
  for (const node of body.nodes) {
    if (node.op === 'input') inner.push(args[nextArg++]!);
    else if (node.op === 'output') {
      result ??= inner[node.x]!;
      inner.push(inner[node.x]!);
    } else inner.push(nodes.push(remap(node, inner)) - 1);
  }
  return result!;
}

/** A copy of a node whose operands are moved by a table. */
export function remap(node: Node, to: readonly Value[]): Node {
  const at = (value: Value): Value => to[value]!;
  switch (node.op) {
    case 'input':
    case 'embed':
    case 'foldState':
      return node;
    case 'add':
    case 'mul':
    case 'concat':
      return { ...node, a: at(node.a), b: at(node.b) };
    case 'softmaxAttention':
      return { ...node, q: at(node.q), k: at(node.k), v: at(node.v) };
    case 'dualLinearAttention':
      return { ...node, q: at(node.q), k: at(node.k), v: at(node.v), gates: at(node.gates) };
    case 'selectiveScan':
      return { ...node, x: at(node.x), dt: at(node.dt), b: at(node.b), c: at(node.c) };
    case 'call':
      return { ...node, inputs: node.inputs.map(at) };
    default:
      return { ...(node as Exclude<typeof node, NodeOf<'input'>>), x: at(node.x) };
  }
}

/** The values that a node reads, in the order of its fields; `foldState` reads a state only. */
export function operandsOf(node: Node): readonly Value[] {
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
