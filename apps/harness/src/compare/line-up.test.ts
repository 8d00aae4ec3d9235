import { describe, expect, it } from 'vitest';
import type { Checkpoint } from '../checkpoint.js';
import { checkLevels, defaultLevels, lineUp } from './line-up.js';

const llama = (convertible: number, kept: number): Checkpoint => ({
  folder: '/models/llama',
  name: 'llama',
  config: {} as Checkpoint['config'],
  convertible,
  order: Array.from({ length: convertible }, (_, layer) => layer),
  kept,
  orderOrigin: '',
  recallFormat: undefined,
});

describe('defaultLevels', () => {
  it('gives quarters, and all but the recall layers', () => {
    expect(defaultLevels(llama(8, 0))).toEqual([2, 4, 6, 8]);
    expect(defaultLevels(llama(8, 1))).toEqual([2, 4, 6, 7, 8]);
    expect(defaultLevels(llama(2, 0))).toEqual([1, 2]);
    expect(defaultLevels(llama(1, 0))).toEqual([1]);
  });
});

describe('lineUp', () => {
  const mixers = ['foldable', 'window', 'single', 'published'] as const;

  it('has the ablations at one level', () => {
    const entries = lineUp(llama(8, 1), llama(0, 0), { levels: [4, 7], mixers });
    const ids = ['foldable-4', 'foldable-7', 'window-4', 'window-7', 'single-7', 'published-7'];
    expect(entries.map(({ id }) => id)).toEqual(['softmax', ...ids, 'zamba']);
    expect(entries.filter(({ conversion }) => conversion.folder)).toEqual([]);
  });

  it('has trained mixers at every level, beside them untuned ones under a name of their own, and fewer windows', () => {
    const tuned = { mixer: 'foldable', options: { kind: 'dual', states: 2 }, level: 8, folder: '/tuned' } as const;
    const entries = lineUp(llama(8, 1), undefined, { levels: [2, 4, 7, 8], mixers, tuned });
    const trained = entries.filter(({ family }) => family === 'foldable');
    expect(trained.map(({ conversion }) => conversion)).toEqual([2, 4, 7, 8].map((level) => ({ ...tuned, level })));
    const others = entries.filter(({ family }) => family !== 'foldable');
    expect(others.map(({ id, conversion }) => `${id} ${conversion.mixer}`)).toEqual([
      'softmax foldable',
      'untuned-7 untuned',
      'untuned-8 untuned',
      'window-4 window',
      'window-7 window',
      'window-8 window',
      'single-7 single',
      'published-7 published',
    ]);
  });

  it('puts trained mixers of another form in the place of that form', () => {
    const tuned = { mixer: 'single', options: { kind: 'dual', states: 1 }, level: 8, folder: '/tuned' } as const;
    const entries = lineUp(llama(8, 1), undefined, { levels: [4, 8], mixers: ['foldable', 'single'], tuned });
    const folders = entries.map(({ id, conversion }) => `${id} ${conversion.folder ?? ''}`);
    expect(folders).toEqual([
      'softmax ',
      'foldable-4 ',
      'foldable-8 ',
      'single-4 /tuned',
      'single-8 /tuned',
      'untuned-8 ',
    ]);
  });

  it('takes the level closest to half where recall layers are unknown', () => {
    const entries = lineUp(llama(8, 0), undefined, { levels: [1, 5, 8], mixers: ['single'] });
    expect(entries.map(({ id }) => id)).toEqual(['softmax', 'single-5']);
  });
});

it('refuses levels out of range', () => {
  expect(() => checkLevels([1, 8], llama(8, 0))).not.toThrow();
  expect(() => checkLevels([0], llama(8, 0))).toThrow(/--levels: levels must be in 1\.\.8 for llama, got 0\./);
  expect(() => checkLevels([9], llama(8, 0))).toThrow(/got 9/);
});
