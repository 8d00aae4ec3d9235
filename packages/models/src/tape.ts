import type { LayerGraph, Node, NodeOf, StateSpec, Value, Weight } from '@dsla/spec';

/** Writes a tape line by line; every method appends one node and returns its value. */
export interface TapeWriter {
  input(name: string, width: number): Value;
  linear(x: Value, weight: Weight, bias?: Weight): Value;
  norm(x: Value, weight: Weight, eps: number): Value;
  add(a: Value, b: Value): Value;
  mul(a: Value, b: Value): Value;
  concat(a: Value, b: Value): Value;
  slice(x: Value, from: number, to: number): Value;
  activate(x: Value, fn: NodeOf<'activate'>['fn']): Value;
  output(name: string, x: Value): void;
  /** Any other node, with the states that it reads and writes. */
  node(node: Node, ...states: StateSpec[]): Value;
}

/** A tape: the nodes that `write` appends. */
export function tape(name: string, write: (t: TapeWriter) => void): LayerGraph {
  const nodes: Node[] = [];
  const states: StateSpec[] = [];
  const node = (next: Node, ...named: StateSpec[]): Value => {
    states.push(...named);
    return nodes.push(Object.freeze(next)) - 1;
  };
  write({
    input: (input, width) => node({ op: 'input', name: input, width }),
    linear: (x, weight, bias) => node({ op: 'linear', x, weight, ...(bias !== undefined && { bias }) }),
    norm: (x, weight, eps) => node({ op: 'rmsNorm', x, weight, eps }),
    add: (a, b) => node({ op: 'add', a, b }),
    mul: (a, b) => node({ op: 'mul', a, b }),
    concat: (a, b) => node({ op: 'concat', a, b }),
    slice: (x, from, to) => node({ op: 'slice', x, from, to }),
    activate: (x, fn) => node({ op: 'activate', x, fn }),
    output: (output, x) => {
      node({ op: 'output', name: output, x });
    },
    node,
  });
  return Object.freeze({ name, nodes: Object.freeze(nodes), states: Object.freeze(states) });
}
