import { expect, it } from 'vitest';
import { formatBytes, formatCount, formatSeconds, formatTokens, significant } from './units.js';

it('formats bytes in binary units', () => {
  expect([0, 1, 1023, 1536, 2 ** 20, 9.46 * 2 ** 20, 3 * 2 ** 40].map(formatBytes)).toEqual([
    '0 B',
    '1 B',
    '1023 B',
    '1.5 KiB',
    '1 MiB',
    '9.46 MiB',
    '3 TiB',
  ]);
});

it('formats counts, tokens and seconds', () => {
  expect([0, 999, 1000, 12_345_678, 7e9].map(formatCount)).toEqual(['0', '999', '1 k', '12.3 M', '7 G']);
  expect([512, 1024, 4096, 1500].map(formatTokens)).toEqual(['512', '1k', '4k', '1500']);
  expect([0.04, 3.21, 59.94, 72.4, 119.6].map(formatSeconds)).toEqual([
    '0.0 s',
    '3.2 s',
    '59.9 s',
    '1 min 12 s',
    '2 min 0 s',
  ]);
});

it('keeps three significant digits', () => {
  expect([1234.5, 12.345, 0.012345, -2.5, 100, 10, 0].map(significant)).toEqual([
    '1235',
    '12.3',
    '0.0123',
    '-2.5',
    '100',
    '10',
    '0',
  ]);
});
