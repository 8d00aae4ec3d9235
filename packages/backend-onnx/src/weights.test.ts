import { toFloat16 } from '@dsla/spec';
import { describe, expect, it, vi } from 'vitest';
import type { Binding } from './binding/binding.js';
import { openCApi } from './binding/c-api.js';
import { libraryPath } from './binding/choose.js';
import { onCuda } from './dialect.js';
import { Pool } from './pool.js';
import { blocksOf } from './quantise.js';
import { WeightTable } from './weights.js';

const shape = [2, 64];
const source = {
  spec: () => ({ storage: 'f32' as const, shape }),
  read: async () => ({ dtype: 'f16' as const, shape, data: toFloat16(new Float32Array(128).fill(0.5)) }),
};
const { codes } = blocksOf('q8', 'float16');

describe('a matrix in blocks that the device makes', () => {
  it.each([
    ['its kernel fails', 'run'],
    ['there is no memory for the numbers', 'first'],
    ['there is none for the blocks', 'second'],
    ['the numbers cannot be written', 'write'],
  ])('leaves no memory behind where %s', async (_, failing) => {
    const binding = await openCApi(libraryPath(), { threads: 1, packs: false });
    const allocate = binding.allocate.bind(binding);
    let allocated = 0;
    const freed = vi.fn();
    vi.spyOn(binding, 'allocate').mockImplementation((...args) => {
      if (failing === ['first', 'second'][allocated]) throw new Error(failing);
      allocated += 1;
      const memory = allocate(...args);
      const free = memory.free.bind(memory);
      if (failing === 'write') vi.spyOn(memory, 'write').mockThrow(new Error(failing));
      vi.spyOn(memory, 'free').mockImplementation(() => {
        freed();
        free();
      });
      return memory;
    });
    const run: Binding['run'] = async () => {
      throw new Error(failing);
    };
    const pool = new Pool(binding);
    const table = new WeightTable(pool, { dialect: onCuda('float16', true), ready: async () => true, run });
    await expect(table.acquire('w', codes, source)).rejects.toThrow(failing);
    expect(pool.usage).toEqual({ buffers: 0, bytes: 0 });
    expect(freed).toHaveBeenCalledTimes(allocated);
    await binding.close();
  });
});
