import { fromFloat16, toFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { openRunner } from './kernel-runner.js';
import { linearVector, vectorGroups } from './kernels/linear-vector.js';
import { bytesOf, pairsGrid, type Quantised, quantise } from './kernels/quantise.js';
import { vectorShape } from './kernels/vector-shape.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

const wave = (length: number, seed: number) =>
  Float32Array.from({ length }, (_, i) => Math.sin(seed + 12.9898 * i) * Math.cos(0.37 * i * seed) * 0.3);
const rounded = (values: Float32Array<ArrayBuffer>) => fromFloat16(toFloat16(values)).slice();
const packed = (values: Float32Array<ArrayBuffer>) => new Uint32Array(toFloat16(values).slice().buffer);

/** What blocks of 32 numbers become. */
function blocks(values: Float32Array<ArrayBuffer>, format: Quantised): Float32Array {
  const [least, most] = format === 'q8' ? [-128, 127] : [-8, 7];
  return values.map((value, i) => {
    const block = values.subarray(i - (i % 32), i - (i % 32) + 32);
    const largest = block.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
    const [scale] = rounded(Float32Array.of(format === 'q8' ? Math.abs(largest) / 127 : largest / -8));
    return scale! * Math.min(Math.max(Math.round(value / scale!), least), most);
  });
}

/** What the features that one load of a matrix meets become: 8 bits each, of the largest. */
function eightBits(values: Float32Array, together: number): Float32Array {
  return values.map((value, i) => {
    const load = values.subarray(i - (i % together), i - (i % together) + together);
    const scale = load.reduce((most, other) => Math.max(most, Math.abs(other)), 0) / 127;
    return scale * Math.round(value / scale);
  });
}

describe.skipIf(obstacle)(`teams that quantise x together${obstacle ? ` (${obstacle})` : ''}`, () => {
  // Subgroups have four lanes here: those of float16 that share a scale with 4 bits, of float32 with 8 bits.
  it.each([
    { format: 'q4', type: 'f16', width: 256, normed: true, last: false, teams: 8 },
    { format: 'q4', type: 'f16', width: 320, normed: false, last: false, teams: 2 }, // loads for some threads only
    { format: 'q8', type: 'f32', width: 256, normed: true, last: false, teams: 2 },
    { format: 'q8', type: 'f32', width: 320, normed: true, last: true, teams: 4 },
  ] as const)('$format, $type, width $width, normed $normed, last tokens $last, $teams teams', async (one) => {
    const { format, type, width, normed, last, teams } = one;
    const outputs = [40, 21];
    // Last tokens lie elsewhere than their rows.
    const runner = await openRunner([2, 1, 3].map((count, slot) => ({ slot, past: 0, count })));
    const x = type === 'f16' ? rounded(wave(6 * width, 1)) : wave(6 * width, 1);
    const norm = wave(width, 2);
    const matrices = outputs.map((count, n) => wave(count * width, 3 + n));
    const weights = [];
    for (const matrix of matrices) {
      const to = runner.buffer(new Uint32Array(bytesOf(format, matrix.length) / 4));
      await runner.run(quantise(format, 'f32', matrix.length), [runner.buffer(matrix), to], pairsGrid(matrix.length));
      weights.push(to);
    }
    const parts = outputs.map((count) => ({ y: { width: count, type: 'f32' as const }, bias: false }));
    const size = width / (format === 'q4' ? 32 : 16) > 16 ? 32 : 16;
    const shape = { size, items: 1, rows: 12, ahead: 4, lanes: 4, places: 1, teams };
    const eps = normed ? 1e-5 : undefined;
    const domain = last ? 'row' : 'token';
    const kernel = linearVector({ domain, x: { width, type, last }, format, parts, shape, eps });
    const ys = outputs.map((count) => runner.buffer(new Float32Array(6 * count)));
    const buffers = [runner.buffer(type === 'f16' ? packed(x) : x), ...(normed ? [runner.buffer(norm)] : [])];
    const tokens = last ? [1, 2, 5] : [0, 1, 2, 3, 4, 5];
    const grid = [vectorGroups(parts, shape), tokens.length, 1] as const;
    await runner.run(kernel, [...buffers, ...weights.flatMap((weight, n) => [weight, ys[n]!])], grid);
    for (const [n, count] of outputs.entries()) {
      const got = new Float32Array(await runner.read(ys[n]!));
      const want = tokens.flatMap((token) => {
        const row = x.subarray(token * width, (token + 1) * width);
        const root = normed ? 1 / Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / width + 1e-5) : 1;
        const matrix = blocks(matrices[n]!, format);
        const features = eightBits(normed ? row.map((v, k) => v * norm[k]!) : row, format === 'q4' ? 32 : 16);
        return Array.from({ length: count }, (_, o) =>
          features.reduce((sum, v, k) => sum + root * v * matrix[o * width + k]!, 0),
        );
      });
      const square = (values: readonly number[]) => values.reduce((sum, v) => sum + v * v, 0);
      const error = square(want.map((v, i) => v - got[i]!));
      // A number between two of 8 bits may go either way.
      expect(Math.sqrt(error / square(want))).toBeLessThan(1e-3);
    }
  });

  it('are for matrices with rows enough, where subgroups hold the lanes of a scale', () => {
    const work = {
      format: 'q4',
      items: 1,
      lanes: 32,
      gated: false,
      width: 4096,
      outputs: 4096,
      threads: 1024,
    } as const;
    expect(vectorShape(work)).toMatchObject({ teams: 2, size: 128, rows: 8 });
    expect(vectorShape({ ...work, outputs: 12288 })).toMatchObject({ teams: 8, rows: 16, ahead: 16 });
    expect(vectorShape({ ...work, outputs: 12288, threads: 512 })).toMatchObject({ teams: 2, rows: 24, ahead: 8 });
    expect(vectorShape({ ...work, gated: true, outputs: 11008 })).toMatchObject({ teams: 2, rows: 24, ahead: 4 });
    const memory = { lanes: 16, width: 8192, outputs: 262144 };
    expect(vectorShape({ ...work, ...memory })).toMatchObject({ size: 256, rows: 64 });
    for (const other of [{ lanes: 4 }, { items: 2 }, { outputs: 1024 }, { width: 11008 }, { format: 'q8' as const }])
      expect(vectorShape({ ...work, ...other })).not.toHaveProperty('teams');
  });
});
