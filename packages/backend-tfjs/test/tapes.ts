import {
  DslaError,
  elementCount,
  f32,
  type LayerGraph,
  type Node,
  type StateSpec,
  type Value,
  type Weight,
  type WeightSource,
} from '@dsla/spec';

/** A tape and the values of its weights. */
export interface Tape {
  readonly graph: LayerGraph;
  readonly weights: Record<Weight, { readonly shape: readonly number[]; readonly data: Float32Array }>;
}

export interface Writer {
  push(node: Node): Value;
  weight(name: Weight, shape: readonly number[], data?: ArrayLike<number>): Weight;
  state(spec: StateSpec): string;
  /** A value [N, width] that is all weight: linear of the identity `eye` [N, N], so that its gradient can be asked for. */
  free(name: Weight, tokens: number, width: number, data?: ArrayLike<number>): Value;
}

/** Writes a tape whose last value is its output `y`. Weights without data are normal with a deviation of 0.5. */
export function tape(write: (t: Writer) => Value): Tape {
  const nodes: Node[] = [];
  const states: StateSpec[] = [];
  const weights: Tape['weights'] = {};
  const push = (node: Node) => nodes.push(node) - 1;
  const weight: Writer['weight'] = (name, shape, data) => {
    weights[name] = { shape, data: Float32Array.from(data ?? normals(name, elementCount(shape), 0.5)) };
    return name;
  };
  const x = write({
    push,
    weight,
    state: (spec) => {
      states.push(spec);
      return spec.name;
    },
    free: (name, tokens, width, data) => {
      const eye = nodes.findIndex((node) => node.op === 'input' && node.name === 'eye');
      const input = eye >= 0 ? eye : push({ op: 'input', name: 'eye', width: tokens });
      const values = data ?? normals(name, tokens * width, 1);
      return push({ op: 'linear', x: input, weight: weight(name, [width, tokens], transpose(values, tokens, width)) });
    },
  });
  push({ op: 'output', name: 'y', x });
  return { graph: { name: 'test', nodes, states }, weights };
}

/** The weights of a tape, some of them replaced. */
export function sourceOf({ weights }: Tape, replaced: Record<Weight, Float32Array> = {}): WeightSource {
  const find = (name: Weight) => {
    const found = weights[name];
    if (!found) throw new DslaError('E_CONFIG', { where: name, rule: 'there must be such a weight' });
    return found;
  };
  return {
    spec: (name) => ({ storage: 'f32', shape: find(name).shape }),
    read: async (name) => f32(find(name).shape, replaced[name] ?? find(name).data),
  };
}

export function transpose(x: ArrayLike<number>, rows: number, columns: number): Float32Array {
  return Float32Array.from({ length: rows * columns }, (_, i) => x[(i % rows) * columns + Math.floor(i / rows)]!);
}

/** The identity [n, n]. */
export function eye(n: number): Float32Array {
  return Float32Array.from({ length: n * n }, (_, i) => (i % (n + 1) === 0 ? 1 : 0));
}

/** Normal deviates that depend on `name` only. */
export function normals(name: string, count: number, deviation: number): Float32Array {
  let seed = 2166136261;
  for (const letter of name) seed = Math.imul(seed ^ letter.charCodeAt(0), 16777619);
  const uniform = () => {
    seed = (seed + 0x6d2b79f5) | 0; // mulberry32
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  return Float32Array.from({ length: count }, () => deviation * normal());
}
