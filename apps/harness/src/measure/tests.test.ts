import { expect, test } from 'vitest';
import { untilSteady } from './tests.js';

test('a warm-up ends with the first run that is within 5 % of the one before', async () => {
  const speeds = [10, 20, 40, 41, 80];
  let runs = 0;
  await untilSteady(() => Promise.resolve(speeds[runs++]!));
  expect(runs).toBe(4);
});
