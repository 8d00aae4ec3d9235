import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { isDslaError } from '@dsla/spec';
import { expect, it } from 'vitest';
import { goldenNames, readGolden } from './golden.js';

it('reads tensors and settings', () => {
  const { settings, tensors } = readGolden('ops/rms-norm-7.safetensors');
  expect(settings).toMatchObject({ op: 'rmsNorm', width: 7, eps: 1e-6 });
  const [x, weight, y] = ['x', 'weight', 'y'].map((name) => tensors.get(name)!);
  expect(x!.shape).toEqual([5, 7]);
  const row = [...x!.data.subarray(0, 7)];
  const norm = Math.sqrt(row.reduce((sum, value) => sum + value * value, 0) / 7 + 1e-6);
  row.forEach((value, i) => {
    expect(y!.data[i]).toBeCloseTo((weight!.data[i]! * value) / norm, 5);
  });
});

it('reads integers as integers', () => {
  expect(readGolden('ops/rope-8.safetensors').tensors.get('positions')!.data).toEqual(
    Int32Array.of(0, 1, 2, 7, 511, 4095),
  );
});

it('lists what there is', () => expect(goldenNames('ops').length).toBeGreaterThan(40));

it('refuses a file that manifest.json does not vouch for, and says how to make it again', () => {
  // manifest.json stands in for a damaged file: it cannot hold its own hash.
  const hash = createHash('sha256')
    .update(readFileSync(new URL('../golden/manifest.json', import.meta.url)))
    .digest('hex');
  try {
    readGolden('manifest.json');
    expect.unreachable();
  } catch (error) {
    expect(isDslaError(error) && error.code).toBe('E_FORMAT');
    expect(String(error)).toContain(hash);
    expect(String(error)).toMatch(/python tools\/golden\/make\.py --out packages\/conformance\/golden/);
  }
});
