import { expect, describe as group, it } from 'vitest';
import { distance, missing, openGolden } from '../test/golden.js';
import type { LlamaConfig } from './index.js';
import { rope } from './rope.js';

it('has theta^(-2i/hd)', () => {
  const { frequencies, rotaryDim } = rope(4, 10000);
  expect(rotaryDim).toBe(4);
  expect(frequencies).toEqual([1, 0.01]);
  expect(rope(4, 10000, { type: 'linear', factor: 8 }).frequencies).toEqual([0.125, 0.00125]);
});

group.skipIf(missing)('llama3 scaling', () => {
  it("has the library's frequencies and angles", async () => {
    await using golden = await openGolden('llama3-rope');
    const { headDim, theta, scaling } = golden.config as LlamaConfig;
    const { frequencies } = rope(headDim, theta, scaling);
    expect(distance(Float32Array.from(frequencies), await golden.floats('inv_freq'))).toBeLessThan(1e-7);
    const angles = [...(await golden.ids('positions'))].flatMap((p) =>
      [...frequencies, ...frequencies].map((f) => p * f),
    );
    // The library multiplies in float32: at position 1499 an angle is off by up to 1e-4.
    expect(distance(Float32Array.from(angles, Math.cos), await golden.floats('cos'))).toBeLessThan(1e-4);
    expect(distance(Float32Array.from(angles, Math.sin), await golden.floats('sin'))).toBeLessThan(1e-4);
  });
});
