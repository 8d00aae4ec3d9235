import { elementCount, toFloat16 } from '@dsla/spec';
import type { TensorReader, WeightRef } from '../src/index.js';

export interface Stored {
  readonly shape: readonly number[];
  readonly data: Float32Array;
  readonly storage?: string;
}

/** A checkpoint in memory; selects as plainly as the words of TensorReader say. */
export function reader(tensors: Readonly<Record<string, Stored>>): TensorReader {
  const entries = Object.entries(tensors);
  return {
    tensors: new Map(entries.map(([name, { shape, storage = 'f32' }]) => [name, { storage, shape }])),
    async readFloats(name, { as, index, rows }: { as: 'f32' | 'f16' } & Pick<WeightRef, 'index' | 'rows'>) {
      let { shape, data } = tensors[name]!;
      const take = (wanted: readonly number[]) => {
        const size = elementCount(shape.slice(1));
        data = Float32Array.from(wanted.flatMap((row) => [...data.subarray(row * size, (row + 1) * size)]));
      };
      if (index !== undefined) {
        take([index]);
        shape = shape.slice(1);
      }
      if (rows) {
        const wanted = Array.from({ length: shape[0]! }, (_, row) => row).filter(
          (row) => row >= rows.start && (row - rows.start) % rows.step === 0,
        );
        take(wanted);
        shape = [wanted.length, ...shape.slice(1)];
      }
      return { dtype: as, shape, data: as === 'f32' ? data : toFloat16(data) };
    },
  };
}

/** Every tensor of a checkpoint under another name; undefined drops it. */
export function renamed(of: TensorReader, rename: (name: string) => string | undefined): TensorReader {
  const names = new Map<string, string>();
  for (const name of of.tensors.keys()) {
    const next = rename(name);
    if (next !== undefined) names.set(next, name);
  }
  return {
    tensors: new Map([...names].map(([next, name]) => [next, of.tensors.get(name)!])),
    readFloats: (name, options) => of.readFloats(names.get(name)!, options),
  };
}
