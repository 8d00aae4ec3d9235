import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { toFloat16 } from '@dsla/spec';
import { afterAll, describe, expect, it } from 'vitest';
import { emulated, runs, withWhat } from '../../test/emulate.js';
import { blocksOf } from '../quantise.js';
import { quantiseOperator } from './quantise.js';

/** Blocks of 32 from tiny to large, some of zeros, some with a number that stands out. */
const values = Float32Array.from({ length: 32 * 300 }, (_, at) => {
  const block = Math.floor(at / 32);
  const size = block % 50 === 3 ? 0 : 2 ** ((block % 30) - 22);
  return Math.sin(1 + at * 12.9898) * size * (at % 37 === 5 ? 3 : 1);
});

describe.skipIf(!runs)(`blocks made by the device (${withWhat})`, () => {
  const folder = runs ? mkdtempSync(join(tmpdir(), 'quantise-')) : '';
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it.each([
    ['q8', 'float16'],
    ['q8', 'float'],
    ['q4', 'float16'],
    ['q4', 'float'],
  ] as const)('are bit by bit those that the host makes: %s of %s', (format, type) => {
    const numbers = type === 'float' ? values : toFloat16(values);
    const want = blocksOf(format, type).codes.view.make(numbers);
    const operator = { ...quantiseOperator(format, type), inputNames: ['numbers'], outputNames: ['bytes'] };
    const bytes = new Uint8Array(want.length);
    emulated(operator, folder)({ numbers, bytes }, { blocks: values.length / 32 });
    expect(Buffer.from(bytes).equals(want)).toBe(true);
  });
});
