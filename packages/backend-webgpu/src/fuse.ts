import type { LayerGraph, Node, NodeOf, Value } from '@dsla/spec';

// Neighbours that one kernel computes.

/** Operands of a node. */
export function reads(node: Node): readonly Value[] {
  const values = node as Partial<Record<'x' | 'a' | 'b' | 'q' | 'k' | 'v' | 'gates' | 'dt' | 'c', Value>>;
  const all = [values.x, values.a, values.b, values.q, values.k, values.v, values.gates, values.dt, values.c];
  return all.filter((value) => value !== undefined);
}

export interface Fusions {
  /** By the index of a mul: f(gate) * up, without a value for f(gate). */
  readonly gated: ReadonlyMap<
    Value,
    { readonly fn: NodeOf<'activate'>['fn']; readonly gate: Value; readonly up: Value }
  >;
  /** By the index of an add: the rmsNorm that follows it. */
  readonly normed: ReadonlyMap<Value, Value>;
  /** Nodes that another one computes. */
  readonly absorbed: ReadonlySet<Value>;
}

export function findFusions({ nodes }: LayerGraph): Fusions {
  const uses = new Map<Value, number>();
  for (const value of nodes.flatMap(reads)) uses.set(value, (uses.get(value) ?? 0) + 1);
  const gated: Map<Value, { fn: NodeOf<'activate'>['fn']; gate: Value; up: Value }> = new Map();
  const normed = new Map<Value, Value>();
  const absorbed = new Set<Value>();
  nodes.forEach((node, index) => {
    if (node.op === 'mul') {
      const gate = nodes[node.a]!;
      if (gate.op !== 'activate' || uses.get(node.a) !== 1) return;
      gated.set(index, { fn: gate.fn, gate: gate.x, up: node.b });
      absorbed.add(node.a);
    }
    if (node.op === 'add') {
      const next = nodes[index + 1];
      if (next?.op !== 'rmsNorm' || next.x !== index) return;
      normed.set(index, index + 1);
      absorbed.add(index + 1);
    }
  });
  return { gated, normed, absorbed };
}
