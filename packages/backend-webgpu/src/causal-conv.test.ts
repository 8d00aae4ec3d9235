import { fromFloat16, toFloat16 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { openRunner } from './kernel-runner.js';
import { convGroups, convTileable, convTiles } from './kernels/causal-conv.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

describe.skipIf(obstacle)(`the causal convolution${obstacle ? ` (${obstacle})` : ''}`, () => {
  it.each([4, 3])('of %i taps goes through the tiles of long rows eight channels at a time', async (taps) => {
    const rows = [
      { slot: 1, past: 7, count: 70 },
      { slot: 0, past: 3, count: 2 }, // a short row, left to others
      { slot: 2, past: 0, count: 20 },
    ];
    const [width, tokens] = [24, 92];
    const numbers = (length: number, seed: number) =>
      Float32Array.from({ length }, (_, i) => 2 * Math.sin(seed + 12.9898 * i));
    const bits = toFloat16(numbers(tokens * width, 1)).slice();
    const x = fromFloat16(bits);
    const [w, bias, state] = [numbers(width * taps, 2), numbers(width, 3), numbers(3 * width * (taps - 1), 4)];
    const want: number[] = [];
    const long: number[] = [];
    let start = 0;
    for (const { slot, count } of rows) {
      for (let t = 0; t < count && count > 8; t++)
        for (let channel = 0; channel < width; channel++) {
          let sum = bias[channel]!;
          for (let j = 0; j < taps; j++) {
            const at = t + j - (taps - 1);
            const before = state[(slot * width + channel) * (taps - 1) + t + j]!;
            sum += w[channel * taps + j]! * (at < 0 ? before : x[(start + at) * width + channel]!);
          }
          want.push(sum / (1 + Math.exp(-sum)));
          long.push((start + t) * width + channel);
        }
      start += count;
    }
    const half = { width, type: 'f16' } as const;
    expect(convTileable(half, half)).toBe(true);
    const runner = await openRunner(rows);
    const y = runner.buffer(new Uint32Array((tokens * width) / 2));
    const buffers = [new Uint32Array(bits.buffer), w, bias, state].map((of) => runner.buffer(of));
    const kernel = convTiles(half, taps, 'f32', true, 'silu');
    await runner.run(kernel, [...buffers, y], [convGroups(half), runner.view.tiles, 1]);
    const got = fromFloat16(new Uint16Array(await runner.read(y)));
    const error = want.map((value, at) => Math.abs(got[long[at]!]! - value) / (1 + Math.abs(value)));
    expect(Math.max(...error)).toBeLessThan(1e-3);
  });
});
