import { expect, it } from 'vitest';
import { sampleReport } from '../../test/sample-report.js';
import { parseReport } from './report.js';

it('reads its own JSON back', () => {
  expect(parseReport(JSON.stringify(sampleReport), 'x')).toEqual(sampleReport);
});

it.each([
  ['no JSON', '{"format":', /x: must be JSON/],
  ['another version', JSON.stringify({ ...sampleReport, version: 2 }), /x: must be a report of version 1: .*version/],
  ['no contenders', JSON.stringify({ ...sampleReport, contenders: [] }), /contenders/],
])('refuses %s', (_, text, message) => {
  expect(() => parseReport(text, 'x')).toThrow(message);
});
