import koffi from 'koffi';
import { describe, expect, it } from 'vitest';
import type { LoadedOperator } from './cuda/kernels.js';

// The structures that cuLaunchKernelEx reads, by cuda.h: CUlaunchConfig { gridDimX, Y, Z, blockDimX, Y, Z, sharedMemBytes, hStream, attrs,
// numAttrs }, CUlaunchAttribute { id, pad, value }.

const operator: LoadedOperator = {
  name: 'two launches',
  inputs: [{ type: 'float', dims: ['rows', 'width'] }],
  outputs: [{ type: 'float', dims: ['rows'] }],
  source: '',
  launches: [
    {
      kernel: 'a',
      function: 11n,
      grid: [{ blocks: 'width', by: 4 }, 'rows'],
      threads: 64,
      shared: 100_000,
      early: true,
    },
    { kernel: 'none', function: 12n, grid: [0], threads: 32 },
    { kernel: 'b', function: 13n, grid: [{ times: ['rows', 3] }], threads: 32 },
  ],
};

describe('launches of operators of our own', () => {
  it('hand the driver blocks, threads, shared memory, stream, attribute and arguments', async () => {
    const { launcherOn } = await import(new URL('./operators.js', import.meta.url).href);
    const seen: unknown[] = [];
    const launch = (config: bigint, kernel: bigint, parameters: null, extra: bigint): number => {
      const words = new Uint32Array(koffi.view(config, 56));
      const [stream, attributes] = new BigUint64Array(koffi.view(config, 56), 32, 2);
      const [pointer, from, sizeOf, size, end] = new BigUint64Array(koffi.view(extra, 40));
      const bytes = Number(new BigUint64Array(koffi.view(size!, 8))[0]);
      const data = koffi.view(from!, bytes);
      seen.push({
        kernel,
        parameters,
        geometry: [...words.subarray(0, 7)],
        stream,
        attribute: words[12] === 1 ? [...new Uint32Array(koffi.view(attributes!, 12))] : [],
        tags: [pointer, sizeOf, end],
        pointers: [...new BigUint64Array(data, 0, 2)],
        sizes: [...new Int32Array(data, 16)],
      });
      return 0;
    };
    launcherOn(koffi, launch, 77n)(operator)([100n, 200n], new Map(Object.entries({ rows: 5, width: 9 })));
    const same = { parameters: null, stream: 77n, tags: [1n, 2n, 0n], pointers: [100n, 200n], sizes: [5, 9] };
    expect(seen).toEqual([
      { ...same, kernel: 11n, geometry: [3, 5, 1, 64, 1, 1, 100_000], attribute: [6, 0, 1] },
      { ...same, kernel: 13n, geometry: [15, 1, 1, 32, 1, 1, 0], attribute: [] },
    ]);
    const failing = launcherOn(koffi, () => 701, 77n)(operator);
    expect(() => failing([100n, 200n], new Map(Object.entries({ rows: 5, width: 9 })))).toThrow(
      'CUDA driver error 701',
    );
  });
});
