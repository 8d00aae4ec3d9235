import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { highestLevel, lossBound, parseQuality, type QualityTable } from './quality.js';

const entry = (level: number, length: number, high: number | null, task = 'text') => ({
  level,
  task,
  length,
  loss: { value: (high ?? 1) / 2, low: high === null ? null : 0, high, n: 4 },
});
const tableOf = (entries: QualityTable['entries'], layers = 8): QualityTable => ({
  format: 'dsla-quality',
  version: 1,
  layers,
  confidence: 0.95,
  tasks: { text: 'bits per byte', recall: 'share of answers' },
  entries,
});

const example = tableOf([
  entry(2, 1024, 0.01),
  entry(4, 1024, 0.03),
  entry(8, 1024, 0.5),
  entry(4, 4096, 0.02),
  entry(6, 4096, 0.01), // by chance below level 4
  entry(4, 4096, 0.1, 'recall'),
]);

describe('highestLevel', () => {
  it('answers from the bucket that reaches the length', () => {
    expect(highestLevel(example, 1000, { text: 0.03 })).toBe(4);
    expect(highestLevel(example, 1024, { text: 0.02 })).toBe(2);
    expect(highestLevel(example, 1025, { text: 0.02 })).toBe(6);
  });

  it('takes the worse neighbour for a level between, and knows nothing above the highest', () => {
    expect(lossBound(example, 3, 'text', 1024)).toBe(0.03);
    expect(lossBound(example, 5, 'text', 1024)).toBe(0.5);
    expect(lossBound(example, 7, 'text', 4096)).toBe(Number.POSITIVE_INFINITY);
  });

  it('does not let noise make more conversion look better', () => {
    expect(lossBound(example, 6, 'text', 4096)).toBe(0.02);
    expect(highestLevel(example, 4096, { text: 0.015 })).toBe(0);
  });

  it('is 0 beyond the longest bucket', () => {
    expect(highestLevel(example, 4097, { text: 100 })).toBe(0);
  });

  it('holds every limit', () => {
    expect(highestLevel(example, 4096, { text: 1, recall: 0.05 })).toBe(0);
    expect(highestLevel(example, 4096, { text: 1, recall: 0.1 })).toBe(4);
  });

  it('does not trust a single observation', () => {
    expect(highestLevel(tableOf([entry(1, 10, null)]), 5, { text: 1e9 })).toBe(0);
  });

  it('refuses questions that make no sense', () => {
    expect(() => highestLevel(example, 10, {})).toThrow(/a limit for some task/);
    expect(() => highestLevel(example, 10, { speech: 1 })).toThrow(/one of text, recall, got "speech"/);
    expect(() => highestLevel(example, 10, { text: -1 })).toThrow(/at least 0/);
    expect(() => highestLevel(example, 0, { text: 1 })).toThrow(/positive/);
    expect(() => lossBound(example, 9, 'text', 10)).toThrow(/0..8/);
  });
});

describe('properties of the queries', () => {
  const lengths = [512, 1024, 4096];
  const tables = fc
    .uniqueArray(
      fc.record({
        level: fc.integer({ min: 1, max: 6 }),
        length: fc.constantFrom(...lengths),
        high: fc.double({ min: 0, max: 1, noNaN: true }),
      }),
      { selector: ({ level, length }) => `${level} ${length}` },
    )
    .map((cells) => cells.map(({ level, length, high }) => entry(level, length, high)));
  const length = fc.integer({ min: 1, max: 5000 });
  const limit = fc.double({ min: 0, max: 1, noNaN: true });

  it('a looser limit never lowers the level', () => {
    fc.assert(
      fc.property(tables, length, limit, limit, (entries, at, a, b) => {
        const table = tableOf(entries, 6);
        const [low, high] = [Math.min(a, b), Math.max(a, b)].map((text) => highestLevel(table, at, { text }));
        expect(low!).toBeLessThanOrEqual(high!);
      }),
    );
  });

  it('every measured level within the answer keeps the limit, and what was measured above it is why it stops', () => {
    fc.assert(
      fc.property(tables, length, limit, (entries, at, text) => {
        const answer = highestLevel(tableOf(entries, 6), at, { text });
        const longest = lengths.find((each) => each >= at && entries.some((cell) => cell.length === each));
        const cells = entries.filter((cell) => cell.length === longest);
        for (const { level, loss } of cells) if (level <= answer) expect(loss.high).toBeLessThanOrEqual(text);
        const highest = Math.max(0, ...cells.map(({ level }) => level));
        expect(answer).toBeLessThanOrEqual(highest);
        if (answer < highest) expect(cells.some(({ loss }) => loss.high! > text)).toBe(true);
      }),
    );
  });

  it('a worse measurement never raises the level', () => {
    fc.assert(
      fc.property(tables, fc.nat(), length, limit, (entries, pick, at, text) => {
        fc.pre(entries.length > 0);
        const worse = entries.with(pick % entries.length, {
          ...entries[pick % entries.length]!,
          loss: { value: 1, low: 0, high: 2, n: 4 },
        });
        const [before, after] = [entries, worse].map((each) => highestLevel(tableOf(each, 6), at, { text }));
        expect(after!).toBeLessThanOrEqual(before!);
      }),
    );
  });
});

describe('parseQuality', () => {
  it('returns what was written', () => {
    expect(parseQuality(JSON.parse(JSON.stringify(example)), 'quality.json')).toEqual(example);
  });

  it.each([
    [{ ...example, version: 2 }, /version/],
    [{ ...example, entries: [entry(9, 10, 1)] }, /entries.0: the level must be at most 8/],
    [{ ...example, entries: [entry(1, 10, 1), entry(1, 10, 1)] }, /measured once/],
    [{ ...example, entries: [entry(1, 10, 1, 'speech')] }, /one of "tasks"/],
    [
      { ...example, entries: [{ ...entry(1, 10, 1), loss: { value: 2, low: 0, high: 1, n: 3 } }] },
      /within its interval/,
    ],
  ])('refuses table %#', (value, message) => {
    expect(() => parseQuality(value, 'quality.json')).toThrow(message);
  });
});
