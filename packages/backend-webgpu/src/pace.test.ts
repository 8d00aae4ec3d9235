import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, expect, test, vi } from 'vitest';
import { paced } from './pace.js';

afterEach(() => vi.restoreAllMocks());

/** Waits as Dawn's binding does: a look at the work every time that the global setImmediate comes round. */
function wait(done: () => boolean, looked: () => void): Promise<void> {
  return new Promise((resolve) => {
    const look = (): void => {
      looked();
      if (done()) resolve();
      else globalThis.setImmediate(look);
    };
    globalThis.setImmediate(look);
  });
}

test('Dawn looks seldom at what takes long, and nobody else sees another setImmediate', async () => {
  const own = globalThis.setImmediate;
  const sleeps: number[] = [];
  let now = 0;
  vi.spyOn(performance, 'now').mockImplementation(() => now);
  vi.spyOn(Atomics, 'wait').mockImplementation((_cells, _index, _value, milliseconds = 0) => {
    sleeps.push(milliseconds);
    now += milliseconds;
    return 'timed-out';
  });
  let looks = 0;
  let seen = false;
  const end = paced(() =>
    wait(
      () => now >= 10,
      () => {
        looks += 1;
        now += 0.01;
      },
    ),
  );
  while (now < 10) {
    seen ||= globalThis.setImmediate !== own;
    await turn();
  }
  await end;
  expect(seen).toBe(false);
  expect(Math.max(...sleeps)).toBe(0.2);
  expect(looks).toBeLessThan(200); // 10 ms in steps of 0.01 are 1,000 without pauses
});

test('what is lent keeps the arguments and the handle of setImmediate', async () => {
  const got = await paced(
    () =>
      new Promise<number>((resolve) => {
        const handle = globalThis.setImmediate(resolve, 7);
        expect(handle.hasRef()).toBe(true);
      }),
  );
  expect(got).toBe(7);
});

test('a wait that throws at once gives setImmediate back', () => {
  const own = globalThis.setImmediate;
  expect(() =>
    paced(() => {
      throw new Error('no device');
    }),
  ).toThrow('no device');
  expect(globalThis.setImmediate).toBe(own);
});
