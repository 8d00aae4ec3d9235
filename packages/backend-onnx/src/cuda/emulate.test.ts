import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { emulated, runs, withWhat } from '../../test/emulate.js';

it.skipIf(!runs)(`kernels with functions of the same name have shared memory of their own (${withWhat})`, () => {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-emulate-'));
  const placeOf = (size: number): bigint => {
    const place = new BigInt64Array(1);
    const operator = {
      name: `Place ${size}`,
      inputs: [],
      outputs: [],
      inputNames: [],
      outputNames: ['place'],
      source: `
__device__ __forceinline__ long long placeOfCells() {
  __shared__ int cells[${size}];
  return (long long)cells;
}
extern "C" __global__ void place(long long *y) { *y = placeOfCells(); }
`,
      launches: [{ kernel: 'place', grid: [1], threads: 1 }],
    };
    emulated(operator, folder)({ place }, {});
    return place[0]!;
  };
  try {
    const [first, second] = [placeOf(8), placeOf(1024)];
    expect(first).not.toBe(0n);
    expect(second).not.toBe(first);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
