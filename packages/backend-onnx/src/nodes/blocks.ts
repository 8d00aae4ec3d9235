import type { Ref } from '../emit.js';
import type { Control, ControlData, Lowering } from '../lowering.js';

// Prefill works on blocks of tokens: a row's T tokens as [n, C]. A run takes whole blocks, or one block that is shorter
// (`pieceOfBlocks`), so that no block has to be filled up.

/** Most tokens in a block. */
export const blockSize = 128;

/** Tokens of the next run for a row that has `left` of them: whole blocks, at most `most` tokens, or what is less than a block. */
export function pieceOfBlocks(left: number, most: number): number {
  return left < blockSize ? left : Math.min(left - (left % blockSize), most);
}

export function blocksOf(count: number): { readonly blocks: number; readonly size: number } {
  const size = Math.min(count, blockSize);
  return { blocks: count / size, size };
}

/** int64 [n, C]: `of(t)` for every token of the blocks. */
export function tokenControl(
  key: string,
  of: (t: number, row: { readonly past: number; readonly count: number }) => number,
): Control {
  return {
    key,
    type: 'int64',
    dims: ['blocks', 'size'],
    make(row) {
      const { blocks, size } = blocksOf(row.count);
      return ints([blocks, size], (t) => of(t, row));
    },
  };
}

/** The same as one row, [1, T]. */
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

/** x with other sizes, among them 'blocks' and 'size'. */
export function reshapeTo({ graph, control }: Lowering, x: Ref, sizes: readonly (number | 'blocks' | 'size')[]): Ref {
  const shape: Control = {
    key: `shape ${sizes.join()}`,
    type: 'int64',
    dims: [sizes.length],
    onHost: true,
    make({ count }) {
      const known = blocksOf(count);
      return ints([sizes.length], (axis) => {
        const size = sizes[axis]!;
        return typeof size === 'number' ? size : known[size];
      });
    },
  };
  return graph.op('Reshape', [x, control(shape)]);
}

/** Whole numbers of less than 32 bits as int64: by their halves, because making a BigInt takes a hundred times as long. */
export function ints(dims: readonly number[], of: (index: number) => number): ControlData {
  const length = dims.reduce((a, b) => a * b, 1);
  const halves = new Int32Array(2 * length);
  for (let index = 0; index < length; index++) {
    const value = of(index);
    halves[2 * index] = value;
    halves[2 * index + 1] = value < 0 ? -1 : 0;
  }
  return { dims, data: new BigInt64Array(halves.buffer) };
}

/** What is the same for all rows and steps. */
export function once(make: () => ControlData): () => ControlData {
  let made: ControlData | undefined;
  return () => {
    made ??= make();
    return made;
  };
}

export function floats(dims: readonly number[], of: (index: number) => number): ControlData {
  const length = dims.reduce((a, b) => a * b, 1);
  return { dims, data: Float32Array.from({ length }, (_, index) => of(index)) };
}

/** x [1, T, kvHeads*group*width] -> [kvHeads, n, group, C, width]; without `group` [kvHeads, n, C, width]. */
export function toBlocks(lowering: Lowering, x: Ref, kvHeads: number, width: number, group?: number): Ref {
  const { graph } = lowering;
  if (group === undefined)
    return graph.transpose(reshapeTo(lowering, x, ['blocks', 'size', kvHeads, width]), [2, 0, 1, 3]);
  return graph.transpose(reshapeTo(lowering, x, ['blocks', 'size', kvHeads, group, width]), [2, 0, 3, 1, 4]);
}

/** x [kvHeads, n, group, C, width] -> [1, T, kvHeads*group*width] */
export function fromBlocks({ graph }: Lowering, x: Ref, features: number): Ref {
  return graph.reshape(graph.transpose(x, [1, 3, 0, 2, 4]), [1, -1, features]);
}

/** x [1, T, heads*hd] -> [heads, T, hd] */
export function byHead({ graph, decode }: Lowering, x: Ref, heads: number, headDim: number): Ref {
  if (decode) return graph.reshape(x, [heads, 1, headDim]);
  return graph.transpose(graph.reshape(x, [-1, heads, headDim]), [1, 0, 2]);
}
