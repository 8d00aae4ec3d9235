import { expect, it } from 'vitest';
import { identities, identity, normal } from './initial.js';

it('makes identities of any shape', () => {
  expect([...identity(2, 3)]).toEqual([1, 0, 0, 0, 1, 0]);
  expect([...identity(3, 2)]).toEqual([1, 0, 0, 1, 1, 0]);
  expect([...identities(2, 2, 2)]).toEqual([1, 0, 0, 1, 1, 0, 0, 1]);
});

it('draws normal numbers that a seed decides', () => {
  const values = normal(100_000, 0.5, 7);
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length;
  const within = values.filter((x) => Math.abs(x) < 0.5).length / values.length;
  // Standard errors: 0.0016, 0.0011, 0.0015.
  expect(Math.abs(mean)).toBeLessThan(0.008);
  expect(Math.abs(variance - 0.25)).toBeLessThan(0.006);
  expect(Math.abs(within - 0.6827)).toBeLessThan(0.008);
  expect(normal(10, 0.5, 7)).toEqual(values.slice(0, 10));
  expect(normal(10, 0.5, 8)).not.toEqual(values.slice(0, 10));
});
