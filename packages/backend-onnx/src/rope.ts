import type { Rope } from '@dsla/spec';
import type { Ref } from './emit.js';
import type { Control, Lowering, Table } from './lowering.js';

/** cos and sin by position and pair, [positions, rotaryDim / 2]: angles in float64, rounded once. */
export function ropeTables({ frequencies }: Rope): { readonly cos: Table; readonly sin: Table } {
  const key = frequencies.join();
  const width = frequencies.length;
  return {
    cos: { key: `cos ${key}`, width, entry: (position, pair) => Math.cos(position * frequencies[pair]!) },
    sin: { key: `sin ${key}`, width, entry: (position, pair) => Math.sin(position * frequencies[pair]!) },
  };
}

/** cos and sin that turn x, each ready to be broadcast against its leading axes. */
export interface Turn {
  readonly cos: Ref;
  readonly sin: Ref;
}

/** The tables' rows at `positions` (int64, any shape): [...positions, rotaryDim / 2]. */
export function turnAt(lowering: Lowering, rope: Rope, positions: Ref): Turn {
  const { cos, sin } = ropeTables(rope);
  const rows = (table: Table): Ref => lowering.graph.op('Gather', [lowering.table(table), positions], { axis: 0 });
  return { cos: rows(cos), sin: rows(sin) };
}

/** Rotates x [..., headDim] by a turn that broadcasts against it; `back` undoes a rotation. */
export function rotate(
  { graph }: Lowering,
  x: Ref,
  { cos, sin }: Turn,
  { rotaryDim }: Rope,
  headDim: number,
  back = false,
): Ref {
  const half = rotaryDim / 2;
  const [a, b] = [graph.slice(x, -1, 0, half), graph.slice(x, -1, half, rotaryDim)];
  const product = (left: Ref, right: Ref): Ref => graph.op('Mul', [left, right]);
  const [first, second] = back ? (['Add', 'Sub'] as const) : (['Sub', 'Add'] as const);
  const parts = [
    graph.op(first, [product(a, cos), product(b, sin)]),
    graph.op(second, [product(b, cos), product(a, sin)]),
  ];
  if (rotaryDim < headDim) parts.push(graph.slice(x, -1, rotaryDim, headDim));
  return graph.concat(parts, -1);
}

const positions: Control = {
  key: 'positions',
  type: 'int64',
  dims: ['count', 1],
  make: ({ past, count }) => ({
    dims: [count, 1],
    data: BigInt64Array.from({ length: count }, (_, t) => BigInt(past + t)),
  }),
};

/** Rotates the heads of a row's tokens: x [1, T, heads*headDim] -> the same. */
export function rotateTokens(lowering: Lowering, x: Ref, heads: number, headDim: number, rope: Rope): Ref {
  const { graph } = lowering;
  const turn = turnAt(lowering, rope, lowering.control(positions)); // [T, 1, pairs]
  const turned = rotate(lowering, graph.reshape(x, [-1, heads, headDim]), turn, rope, headDim);
  return graph.reshape(turned, [1, -1, heads * headDim]);
}
