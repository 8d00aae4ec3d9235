import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Checkpoint, openCheckpoint } from '@dsla/weights';
import { type ModelConfig, parseConfig } from '../src/index.js';

const root = fileURLToPath(new URL('../../conformance/golden/models/', import.meta.url));

/** Reason to skip, where the vectors have not been made. */
export const missing: boolean = !existsSync(join(root, 'llama-base', 'vectors.safetensors'));

/** A small checkpoint and what transformers computes with it. */
export interface Golden extends AsyncDisposable {
  readonly config: ModelConfig;
  readonly checkpoint: Checkpoint;
  readonly vectors: Checkpoint;
  /** An integer vector: `ids`, `far.ids`. */
  ids(name?: string): Promise<Int32Array>;
  floats(name: string): Promise<Float32Array>;
}

export async function openGolden(name: string): Promise<Golden> {
  const folder = join(root, name);
  const checkpoint = await openCheckpoint(folder);
  const vectors = await openCheckpoint(join(folder, 'vectors.safetensors'));
  return {
    config: parseConfig(JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))),
    checkpoint,
    vectors,
    ids: async (ids = 'ids') => new Int32Array((await vectors.read(ids)).buffer),
    floats: async (tensor) => (await vectors.readFloats(tensor, { as: 'f32' })).data as Float32Array,
    async [Symbol.asyncDispose]() {
      await checkpoint[Symbol.asyncDispose]();
      await vectors[Symbol.asyncDispose]();
    },
  };
}

/** Largest |a - b|; NaN counts as infinite. */
export function distance(a: Float32Array, b: Float32Array): number {
  if (a.length !== b.length) throw new Error(`${a.length} against ${b.length} elements`);
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(a[i]! - b[i]!);
    if (!(difference <= largest)) largest = Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
  }
  return largest;
}
