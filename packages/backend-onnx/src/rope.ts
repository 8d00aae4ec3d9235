import type { Rope } from '@dsla/spec';
import type { Ref } from './emit.js';
import type { Control, Lowering, Table } from './lowering.js';
import { ints } from './nodes/blocks.js';
import type { ElementType } from './protobuf.js';

/** cos and sin by position and pair, [positions, rotaryDim / 2]: angles in float64, rounded once. `back` undoes a rotation. */
export function ropeTables(
  { frequencies }: Rope,
  { back = false, type = 'float' }: { readonly back?: boolean; readonly type?: ElementType } = {},
): { readonly cos: Table; readonly sin: Table } {
  const key = `${type} ${frequencies.join()}`;
  const width = frequencies.length;
  const sign = back ? -1 : 1;
  return {
    cos: { key: `cos ${key}`, type, width, entry: (position, pair) => Math.cos(position * frequencies[pair]!) },
    sin: {
      key: `sin ${sign} ${key}`,
      type,
      width,
      entry: (position, pair) => sign * Math.sin(position * frequencies[pair]!),
    },
  };
}

const positions: Control = {
  key: 'positions',
  type: 'int64',
  dims: [1, 'count'],
  make: ({ past, count }) => ints([1, count], (t) => past + t),
};

/** Rotates the heads of a row's tokens: x [1, T, heads*headDim] of a type -> the same. */
export function rotateTokens(lowering: Lowering, x: Ref, heads: number, rope: Rope, type: ElementType = 'float'): Ref {
  return rotary(lowering, x, lowering.control(positions), heads, rope, { type });
}

/** Undoes the rotation of tokens: x [heads, ...tokens, headDim] of a type at `where` [1, tokens] -> the same. */
export function rotateBack(
  lowering: Lowering,
  x: Ref,
  where: Ref,
  heads: number,
  headDim: number,
  rope: Rope,
  type: ElementType = 'float',
): Ref {
  const { graph } = lowering;
  const turned = rotary(lowering, graph.reshape(x, [1, heads, -1, headDim]), where, heads, rope, { back: true, type });
  return graph.op('Reshape', [turned, graph.op('Shape', [x])]);
}

/** The same of one token a row: x [rows, heads, 1, headDim]. */
export function rotateTokensBack(lowering: Lowering, x: Ref, where: Control, heads: number, rope: Rope): Ref {
  return rotary(lowering, x, lowering.control(where), heads, rope, { back: true });
}

function rotary(
  lowering: Lowering,
  x: Ref,
  where: Ref,
  heads: number,
  rope: Rope,
  kind: { readonly back?: boolean; readonly type?: ElementType },
): Ref {
  const { cos, sin } = ropeTables(rope, kind);
  return lowering.graph.msOp('RotaryEmbedding', [x, where, lowering.table(cos), lowering.table(sin)], {
    num_heads: heads,
    rotary_embedding_dim: rope.rotaryDim,
  });
}
