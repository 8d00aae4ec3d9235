import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { toFloat16 } from '@dsla/spec';
import { afterAll, describe, expect, it } from 'vitest';
import { emulated, runs, withWhat } from '../../test/emulate.js';
import { greedyOperator } from './greedy.js';

describe.skipIf(!runs)(`the kernel that takes the most likely token (${withWhat})`, () => {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-greedy-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  it('takes the first of the largest, and -1 where a logit is not a number', () => {
    const vocabulary = 3001;
    const wave = (seed: number) => (_: unknown, at: number) => Math.sin(at * seed) * 5;
    const row = (seed: number, ...put: readonly (readonly [number, number])[]): number[] => {
      const logits = Array.from({ length: vocabulary }, wave(seed));
      for (const [at, value] of put) logits[at] = value;
      return logits;
    };
    const rows = [
      row(1.7, [2999, 7]),
      row(0.3, [5, 7], [1029, 7], [1028, 7]),
      row(0.9, [17, Number.NaN], [3, 9]),
      new Array<number>(vocabulary).fill(Number.NEGATIVE_INFINITY),
      row(2.1, [0, Number.POSITIVE_INFINITY]),
      row(0.77),
    ];
    const ids = new Int32Array(rows.length);
    const operator = { ...greedyOperator(vocabulary), inputNames: ['logits'], outputNames: ['ids'] };
    const logits = toFloat16(Float32Array.from(rows.flat()));
    emulated(operator, folder)({ logits, ids }, { rows: rows.length });
    const rounded = Array.from(toFloat16(Float32Array.from(rows.at(-1)!)));
    const largest = Math.max(...rounded.filter((bits) => bits < 0x8000)); // of positive numbers the order is that of their bits
    expect([...ids]).toEqual([2999, 5, -1, 0, 0, rounded.indexOf(largest)]);
  });
});
