import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fromFloat16, toFloat16 } from '@dsla/spec';
import { afterAll, describe, expect, it } from 'vitest';
import { emulated, ratio, runs, withWhat } from '../../test/emulate.js';
import { type LinearForm, linearOperator } from './linear.js';

// The kernels as C++ on the CPU against y = W x by its definition.

interface Matrix {
  readonly values: Float32Array;
  readonly inputs: readonly ArrayBufferView[];
}

const numbers = (length: number, seed: number): Float32Array =>
  fromFloat16(toFloat16(Float32Array.from({ length }, (_, at) => Math.sin(1 + seed * 1e3 + at * 12.9898))));

/** Integers times a scale for every 32 of them, 128 or 8 added; of 4 bits the first of two in the low half of a byte. */
function inBlocks(format: 'q8' | 'q4', n: number, k: number, seed: number): Matrix {
  const half = format === 'q8' ? 128 : 8;
  const codes = Uint8Array.from({ length: n * k }, (_, at) => (at * 7919 + seed * 31 + ((at * at) % 101)) % (2 * half));
  const scales = toFloat16(Float32Array.from({ length: (n * k) / 32 }, (_, at) => 0.01 + ((at * 13) % 7) / 100));
  const values = Float32Array.from(codes, (code, at) => (code - half) * fromFloat16(scales)[at >> 5]!);
  const bytes =
    format === 'q8' ? codes : codes.filter((_, at) => at % 2 === 0).map((low, at) => low + 16 * codes[2 * at + 1]!);
  return { values, inputs: [bytes, scales] };
}

function matrixOf({ format, k }: LinearForm, n: number, seed: number): Matrix {
  if (format !== 'float16') return inBlocks(format, n, k, seed);
  const values = numbers(n * k, seed);
  return { values, inputs: [toFloat16(values)] };
}

function product(w: Float32Array, x: Float64Array): Float64Array {
  return Float64Array.from({ length: w.length / x.length }, (_, i) =>
    x.reduce((sum, each, j) => sum + each * w[i * x.length + j]!, 0),
  );
}

const forms: readonly (readonly [number, LinearForm])[] = [
  [5, { k: 24, format: 'float16', gated: false, residual: false }],
  [9, { k: 2056, format: 'float16', epsilon: 1e-3, gated: true, residual: true }],
  [3, { k: 11008, format: 'float16', gated: false, residual: true }],
  [4, { k: 4096, format: 'float16', epsilon: 1e-5, gated: false, residual: false }],
  [6, { k: 96, format: 'q8', epsilon: 1e-5, gated: true, residual: false }],
  [3, { k: 11008, format: 'q8', gated: false, residual: true }],
  [6, { k: 96, format: 'q4', gated: true, residual: false }],
  [3, { k: 11008, format: 'q4', epsilon: 1e-5, gated: false, residual: true }],
];

describe.skipIf(!runs)(`kernels of linear maps (${withWhat})`, () => {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-kernels-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  it.each(forms)('of %i rows: %o', (n, form) => {
    const { k, epsilon, gated, residual } = form;
    const [x, gain, added] = [numbers(k, 1), numbers(k, 2), numbers(n, 3)];
    const [w, gate] = [matrixOf(form, n, 4), matrixOf(form, n, 5)];
    const operator = linearOperator(form);
    const given = [
      toFloat16(x),
      ...w.inputs,
      ...(gated ? gate.inputs : []),
      ...(epsilon === undefined ? [] : [toFloat16(gain)]),
      ...(residual ? [toFloat16(added)] : []),
    ];
    const inputNames = given.map((_, at) => `i${at}`);
    const y = new Uint16Array(n);
    const memory = Object.fromEntries([...given.map((data, at) => [`i${at}`, data] as const), ['y', y] as const]);
    emulated({ ...operator, inputNames, outputNames: ['y'] }, folder)(memory, { n });
    const square = x.reduce((sum, each) => sum + each * each, 0) / k;
    const from = Float64Array.from(x, (each, j) =>
      epsilon === undefined ? each : (each * gain[j]!) / Math.sqrt(square + epsilon),
    );
    const gates = product(gate.values, from);
    const want = product(w.values, from).map((each, i) => {
      const through = gated ? (each * gates[i]!) / (1 + Math.exp(-gates[i]!)) : each;
      return residual ? through + added[i]! : through;
    });
    expect(ratio(fromFloat16(y), Float32Array.from(want))).toBeLessThan(1e-3);
  });
});
