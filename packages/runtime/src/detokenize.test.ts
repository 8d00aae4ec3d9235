import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { byteLevel, byteLevelConfig, config, legacy, metaspace } from '../test/tokenizers.js';
import { createDetokenizer, createStopScanner } from './detokenize.js';
import { createTokenizer } from './tokenizer.js';

const where = 'tokenizer.json';
const tokenizers = {
  legacy: createTokenizer({ tokenizer: legacy, config, where }),
  metaspace: createTokenizer({ tokenizer: metaspace, config, where }),
  byteLevel: createTokenizer({ tokenizer: byteLevel, config: byteLevelConfig, where }),
};

describe.each(Object.entries(tokenizers))('the detokenizer over %s', (_, tokenizer) => {
  const stream = (ids: readonly number[]): string[] => {
    const text = createDetokenizer(tokenizer);
    return [...ids.map((id) => text.push(id)), text.flush()];
  };
  // Ordinary pieces, bytes and specials in like shares, and whole characters as the tokenizer writes them.
  const anyId = fc.oneof(fc.nat(tokenizer.size + 2), fc.integer({ min: 259, max: tokenizer.size - 1 }));
  const characters = fc.string({ unit: 'grapheme' }).map((text) => tokenizer.encode(text, { bos: false }));
  const anyIds = fc
    .array(
      fc.oneof(
        anyId.map((id) => [id]),
        characters,
      ),
    )
    .map((parts) => parts.flat());

  it('gives pieces that together are decode of all ids', () => {
    const same = (ids: readonly number[]) => stream(ids).join('') === tokenizer.decode(ids);
    fc.assert(fc.property(anyIds, same), { numRuns: 2000 });
  });

  it('gives pieces that continue a prompt, cut anywhere', () => {
    const same = (before: readonly number[], ids: readonly number[]) => {
      const text = createDetokenizer(tokenizer, before);
      const pieces = [...ids.map((id) => text.push(id)), text.flush()].join('');
      return tokenizer.decode(before).replace(/\uFFFD+$/, '') + pieces === tokenizer.decode([...before, ...ids]);
    };
    const cases = fc.tuple(anyIds, anyIds).filter(([, ids]) => tokenizer.decode(ids) !== '');
    fc.assert(
      fc.property(cases, ([before, ids]) => same(before, ids)),
      { numRuns: 1000 },
    );
  });

  it('splits no character and shows no U+FFFD for text that is valid', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary' }).filter((text) => !text.includes('\uFFFD')),
        (text) => {
          for (const piece of stream(tokenizer.encode(text))) {
            expect(piece).not.toMatch(/\p{Surrogate}/u);
            expect(piece).not.toContain('\uFFFD');
          }
        },
      ),
      { numRuns: 500 },
    );
  });

  it('gives a character when its last byte comes', () => {
    const ids = tokenizer.encode('😀', { bos: false });
    expect(stream(ids).slice(-5)).toEqual(['', '', '', '😀', '']);
  });

  it('shows an incomplete character at the end only', () => {
    const ids = tokenizer.encode('a€', { bos: false }).slice(0, -1);
    expect(stream(ids).slice(-3)).toEqual(['', '', '\uFFFD']);
  });
});

describe('the detokenizer', () => {
  it('keeps the spaces that are in the text and drops the one at the start', () => {
    const text = createDetokenizer(tokenizers.legacy);
    const { id } = tokenizers.legacy;
    expect(['<s>', '▁', '▁', 'a', '<s>', '▁wor'].map((token) => text.push(id(token)!))).toEqual(
      ['', '', ' ', 'a', '', ' wor'], // prettier to read as one line
    );
  });
});

describe('the stop scanner', () => {
  const scan = (stops: readonly string[], pieces: readonly string[]) => {
    const scanner = createStopScanner(stops);
    const out = pieces.map((piece) => scanner.push(piece));
    return { text: out.join('') + scanner.flush(), out, stopped: scanner.stopped };
  };

  it('finds a stop string across pieces and lets nothing of it through', () => {
    expect(scan(['STOP'], ['a S', 'T', 'OP b'])).toEqual({ text: 'a ', out: ['a ', '', ''], stopped: true });
  });

  it('gives back what looked like a stop string and was none', () => {
    expect(scan(['STOP'], ['a ST', 'AY', ' ST'])).toEqual({
      text: 'a STAY ST',
      out: ['a ', 'STAY', ' '],
      stopped: false,
    });
  });

  it('stops at the first of several', () => {
    expect(scan(['world', 'lo'], ['hello world']).text).toBe('hel');
  });

  it('is the text before the first stop string, however it is cut', () => {
    const letters = fc.string({ unit: fc.constantFrom('a', 'b', '😀'), minLength: 1, maxLength: 3 });
    fc.assert(
      fc.property(fc.array(letters), fc.array(letters, { maxLength: 3 }), (pieces, stops) => {
        const { text, stopped } = scan(stops, pieces);
        const whole = pieces.join('');
        // Earliest completion over the pieces as they came; a piece may complete several at once, then the earliest begins.
        let seen = '';
        for (const piece of pieces) {
          seen += piece;
          const starts = stops.map((stop) => seen.indexOf(stop)).filter((index) => index >= 0);
          if (starts.length === 0) continue;
          expect({ text, stopped }).toEqual({ text: seen.slice(0, Math.min(...starts)), stopped: true });
          return;
        }
        expect({ text, stopped }).toEqual({ text: whole, stopped: false });
      }),
      { numRuns: 1000 },
    );
  });
});
