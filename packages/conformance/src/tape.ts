import type { LayerGraph, Named, Node, StateSpec, Value, Weight } from '@dsla/spec';
import type { Spread } from './random.js';
import type { WeightPlan } from './weights.js';

/** A tape with the weights that it needs. */
export interface Tape {
  readonly graph: LayerGraph;
  readonly weights: Named<WeightPlan>;
}

/** Writes a tape from top to bottom. */
export interface TapeBuilder {
  push(node: Node): Value;
  input(name: string, width: number): Value;
  output(name: string, x: Value): void;
  weight(name: Weight, shape: readonly number[], content?: Spread & { readonly data?: Float32Array }): Weight;
  /** x W^T (+ b), with new weights `name` [out, width of x] and `name.bias`. */
  linear(x: Value, name: string, out: number, width: number, bias?: Spread): Value;
  rmsNorm(x: Value, name: string, width: number): Value;
  state(spec: StateSpec): string;
}

export function tape(name: string, write: (t: TapeBuilder) => void): Tape {
  const nodes: Node[] = [];
  const states: StateSpec[] = [];
  const weights: Record<Weight, WeightPlan> = {};
  const push = (node: Node): Value => nodes.push(node) - 1;
  const weight: TapeBuilder['weight'] = (weightName, shape, content = {}) => {
    weights[weightName] = { shape, ...content };
    return weightName;
  };
  write({
    push,
    weight,
    input: (input, width) => push({ op: 'input', name: input, width }),
    output: (output, x) => void push({ op: 'output', name: output, x }),
    linear: (x, linear, out, width, bias) =>
      push({
        op: 'linear',
        x,
        weight: weight(linear, [out, width]),
        ...(bias && { bias: weight(`${linear}.bias`, [out], bias) }),
      }),
    rmsNorm: (x, norm, width) =>
      push({ op: 'rmsNorm', x, weight: weight(norm, [width], { mean: 1, std: 0.1 }), eps: 1e-5 }),
    state: (spec) => {
      states.push(spec);
      return spec.name;
    },
  });
  return { graph: { name, nodes, states }, weights };
}

/** The weights of several tapes. */
export function weightsOfTapes(tapes: readonly Tape[]): Named<WeightPlan> {
  return Object.assign({}, ...tapes.map(({ weights }) => weights));
}
