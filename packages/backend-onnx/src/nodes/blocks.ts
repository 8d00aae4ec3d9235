import type { Ref } from '../emit.js';
import type { Control, ControlData, Lowering } from '../lowering.js';

// Prefill works on blocks of tokens: a row's T tokens as [n, C], the last block filled up with repetitions that are masked
// or cut off.

/** Most tokens in a block. */
export const blockSize = 64;

export interface Blocking {
  /** Blocks always have `blockSize` tokens; otherwise a short row is one block of its own length. */
  readonly full: boolean;
}

export function blocksOf(count: number, { full }: Blocking): { readonly blocks: number; readonly size: number } {
  const size = full ? blockSize : Math.min(count, blockSize);
  return { blocks: Math.ceil(count / size), size };
}

/** int64 [n, C]: `of(t)` for every token of the blocks; t goes beyond the row in the last one. */
export function tokenControl(
  key: string,
  blocking: Blocking,
  of: (t: number, row: { readonly past: number; readonly count: number }) => number,
): Control {
  return {
    key: `${key} ${blocking.full}`,
    type: 'int64',
    dims: ['blocks', 'size'],
    make(row) {
      const { blocks, size } = blocksOf(row.count, blocking);
      return ints([blocks, size], (t) => of(t, row));
    },
  };
}

/** The same as one row, [1, n*C]. */
export function flat(control: Control): Control {
  return {
    ...control,
    key: `flat ${control.key}`,
    dims: [1, 'tokens'],
    make(row) {
      const { dims, data } = control.make(row);
      return { dims: [1, dims.reduce((a, b) => a * b, 1)], data };
    },
  };
}

/** Token of the row in its blocks. */
export function rowTokens(blocking: Blocking): Control {
  return tokenControl('tokens', blocking, (t, { count }) => Math.min(t, count - 1));
}

const countTokens: Control = {
  key: 'count',
  type: 'int64',
  dims: [1],
  onHost: true,
  make: ({ count }) => ints([1], () => count),
};

export function ints(dims: readonly number[], of: (index: number) => number): ControlData {
  const length = dims.reduce((a, b) => a * b, 1);
  return { dims, data: BigInt64Array.from({ length }, (_, index) => BigInt(of(index))) };
}

export function floats(dims: readonly number[], of: (index: number) => number): ControlData {
  const length = dims.reduce((a, b) => a * b, 1);
  return { dims, data: Float32Array.from({ length }, (_, index) => of(index)) };
}

/** x [1, T, kvHeads*group*width] -> [kvHeads, n, group, C, width]; without `group` [kvHeads, n, C, width]. */
export function toBlocks(
  lowering: Lowering,
  x: Ref,
  blocking: Blocking,
  kvHeads: number,
  width: number,
  group?: number,
): Ref {
  const { graph } = lowering;
  const gathered = gatherTokens(lowering, x, kvHeads * (group ?? 1) * width, rowTokens(blocking)); // [n, C, features]
  if (group) return graph.transpose(graph.reshape(gathered, [0, 0, kvHeads, group, width]), [2, 0, 3, 1, 4]);
  return graph.transpose(graph.reshape(gathered, [0, 0, kvHeads, width]), [2, 0, 1, 3]);
}

/** x [1, T, features] -> [n, C, features], the tokens that `index` names. */
export function gatherTokens({ graph, control }: Lowering, x: Ref, features: number, index: Control): Ref {
  return graph.op('Gather', [graph.reshape(x, [-1, features]), control(index)], { axis: 0 });
}

/** x [kvHeads, n, group, C, width] -> [1, T, kvHeads*group*width] */
export function fromBlocks({ graph, control }: Lowering, x: Ref, features: number): Ref {
  const rows = graph.reshape(graph.transpose(x, [1, 3, 0, 2, 4]), [1, -1, features]);
  return graph.slice(rows, 1, 0, control(countTokens));
}

/** x [1, T, heads*hd] -> [heads, T, hd] */
export function byHead({ graph, decode }: Lowering, x: Ref, heads: number, headDim: number): Ref {
  if (decode) return graph.reshape(x, [heads, 1, headDim]);
  return graph.transpose(graph.reshape(x, [-1, heads, headDim]), [1, 0, 2]);
}

/** float [size, size] as large as a block: 0 where column <= row, -inf elsewhere. */
export function triangle(key: string, sizeOf: (count: number) => number): Control {
  return {
    key,
    type: 'float',
    dims: ['size', 'size'],
    make({ count }) {
      const size = sizeOf(count);
      return floats([size, size], (at) => (at % size <= Math.floor(at / size) ? 0 : Number.NEGATIVE_INFINITY));
    },
  };
}
