import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../../..', import.meta.url));

/** Folder or file of the golden models; see packages/conformance/golden/README.md. */
export const goldenModel = (name: string): string => join(root, 'packages/conformance/golden/models', name);

/** A small checkpoint that comes with the harness. */
export const embedded = (name: 'llama-4m' | 'zamba-4m'): string => join(root, 'apps/harness/checkpoints', name);

/** Data that is not in the repository: beside it, or where DSLA_SHARED says. Undefined where it is not there. */
export function shared(path: string): string | undefined {
  const full = join(process.env.DSLA_SHARED ?? join(root, '../shared'), path);
  return existsSync(full) ? full : undefined;
}

export interface Vector {
  readonly shape: readonly number[];
  readonly data: Float32Array | Int32Array;
}

/** Tensors of a golden safetensors file: f32 and i32 only. */
export function vectorsOf(name: string): Record<string, Vector> {
  const file = readFileSync(goldenModel(name));
  const start = 8 + Number(file.readBigUInt64LE(0));
  const { __metadata__: _, ...entries } = JSON.parse(file.toString('utf8', 8, start)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  return Object.fromEntries(
    Object.entries(entries).map(([name, { dtype, shape, data_offsets: range }]) => {
      const bytes = new Uint8Array(file.subarray(start + range[0], start + range[1])).buffer; // a copy, aligned
      return [name, { shape, data: dtype === 'I32' ? new Int32Array(bytes) : new Float32Array(bytes) }];
    }),
  );
}

/** Largest absolute difference; NaN if there is one. */
export function maxDifference(a: ArrayLike<number>, b: ArrayLike<number>): number {
  if (a.length !== b.length) throw new Error(`lengths differ: ${a.length} and ${b.length}`);
  return Array.from(a).reduce((most, value, index) => Math.max(most, Math.abs(value - b[index]!)), 0);
}
