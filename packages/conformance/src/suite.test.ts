import { expect, it } from 'vitest';
import { cases } from './cases/index.js';
import { unmatched } from './suite.js';

it('a skip entry that matches no test is reported', () => {
  const skip = [
    { reason: 'too wide', tests: ['softmaxAttention > head width 464'] },
    { reason: 'misspelt', tests: ['softmaxAttention > head width 465', 'nodes > add'] },
  ];
  expect(unmatched(skip, cases)).toEqual(['softmaxAttention > head width 465']);
});

it('every test has a name of its own', () => {
  expect(new Set(cases.map(({ name }) => name)).size).toBe(cases.length);
});
