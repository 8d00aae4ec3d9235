import { expect, it } from 'vitest';
import { repeat } from './repeat.js';

async function indices(least: number, most: number, until: number): Promise<number[]> {
  const seen: number[] = [];
  const count = await repeat({ least, most, until }, async (index) => void seen.push(index));
  expect(count).toBe(seen.length);
  return seen;
}

it('runs all rounds without a limit, the least number when time is up', async () => {
  expect(await indices(2, 4, Number.POSITIVE_INFINITY)).toEqual([0, 1, 2, 3]);
  expect(await indices(2, 4, 0)).toEqual([0, 1]);
  expect(await indices(1, 1, 0)).toEqual([0]);
});

it('stops before a round that would not end in time', async () => {
  const start = performance.now();
  let clock = 0;
  // A round takes "100 ms": the clock is moved, nobody waits.
  const original = performance.now;
  performance.now = () => start + clock;
  try {
    const count = await repeat({ least: 1, most: 9, until: start + 350 }, async () => {
      clock += 100;
    });
    expect(count).toBe(3);
  } finally {
    performance.now = original;
  }
});
