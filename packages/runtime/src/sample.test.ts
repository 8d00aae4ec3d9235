import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { argmax, createSampler, type Distribution, distribution, type SamplingOptions } from './sample.js';

/** [id, probability], most likely first. */
const pairs = ({ ids, probabilities }: Distribution): [number, number][] =>
  [...ids].map((id, index): [number, number] => [id, probabilities[index]!]).sort(([a, p], [b, q]) => q - p || a - b);
const logs = (...probabilities: number[]): Float32Array => Float32Array.from(probabilities, Math.log);
const close = (got: Distribution, want: readonly (readonly [number, number])[]): void => {
  expect(pairs(got).map(([id]) => id)).toEqual(want.map(([id]) => id));
  for (const [index, [, probability]] of pairs(got).entries()) expect(probability).toBeCloseTo(want[index]![1], 6);
};

describe('the distribution', () => {
  it('is the softmax of the logits at temperature 1', () => {
    close(distribution(logs(0.1, 0.6, 0.3), [], {}), [
      [1, 0.6],
      [2, 0.3],
      [0, 0.1],
    ]);
  });

  it('divides the logits by the temperature', () => {
    // p^(1/2): sqrt(0.64) : sqrt(0.36) = 0.8 : 0.6
    close(distribution(logs(0.64, 0.36), [], { temperature: 2 }), [
      [0, 0.8 / 1.4],
      [1, 0.6 / 1.4],
    ]);
  });

  it('keeps the k most likely, and those equal to the last of them', () => {
    const logits = logs(0.1, 0.4, 0.2, 0.2, 0.1);
    close(distribution(logits, [], { topK: 1 }), [[1, 1]]);
    close(distribution(logits, [], { topK: 2 }), [
      [1, 0.5],
      [2, 0.25],
      [3, 0.25],
    ]);
    expect(distribution(logits, [], { topK: 9 }).ids).toHaveLength(5);
  });

  it('keeps the smallest set that reaches p, at least one', () => {
    const logits = logs(0.15, 0.5, 0.05, 0.3);
    close(distribution(logits, [], { topP: 0.01 }), [[1, 1]]);
    close(distribution(logits, [], { topP: 0.49 }), [[1, 1]]);
    close(distribution(logits, [], { topP: 0.79 }), [
      [1, 0.5 / 0.8],
      [3, 0.3 / 0.8],
    ]);
    close(distribution(logits, [], { topP: 0.81 }), [
      [1, 0.5 / 0.95],
      [3, 0.3 / 0.95],
      [0, 0.15 / 0.95],
    ]);
    expect(distribution(logits, [], { topP: 1 }).ids).toHaveLength(4);
  });

  it('measures p after top-k', () => {
    // top-k 2 leaves 0.5 / 0.8 = 0.625, which reaches 0.6 alone; of the whole it would take two.
    const logits = logs(0.15, 0.5, 0.05, 0.3);
    close(distribution(logits, [], { topK: 2, topP: 0.6 }), [[1, 1]]);
    expect(distribution(logits, [], { topP: 0.6 }).ids).toHaveLength(2);
  });

  it('penalises what was seen, once, before the temperature', () => {
    const logits = Float32Array.of(2, -1, 1);
    // 2 / 2 = 1, -1 * 2 = -2, then halved: 0.5, -1, 0.5
    const total = 2 * Math.exp(0.5) + Math.exp(-1);
    close(distribution(logits, [0, 1, 0], { repetitionPenalty: 2, temperature: 2 }), [
      [0, Math.exp(0.5) / total],
      [2, Math.exp(0.5) / total],
      [1, Math.exp(-1) / total],
    ]);
    expect([...logits]).toEqual([2, -1, 1]); // the caller's
  });

  it('is what a plain sort gives, for any logits and options', () => {
    const logit = fc.integer({ min: -40, max: 40 }).map((value) => value / 4);
    const anyOptions = fc.record({
      temperature: fc.constantFrom(0.3, 1, 2.5),
      topK: fc.option(fc.integer({ min: 1, max: 40 }), { nil: undefined }),
      topP: fc.constantFrom(0.05, 0.3, 0.9, 0.999, 1),
      repetitionPenalty: fc.constantFrom(0.8, 1, 1.3),
    });
    fc.assert(
      fc.property(
        fc.array(logit, { minLength: 1, maxLength: 40 }),
        fc.array(fc.nat(39)),
        anyOptions,
        (values, seen, options) => {
          const history = seen.filter((id) => id < values.length);
          close(distribution(Float32Array.from(values), history, options), plain(values, history, options));
        },
      ),
      { numRuns: 500 },
    );
  });
});

/** The definition: sort everything, then cut. */
function plain(values: readonly number[], history: readonly number[], options: SamplingOptions): [number, number][] {
  const { temperature = 1, topK = values.length, topP = 1, repetitionPenalty = 1 } = options;
  const scores = values.map((value, id): [number, number] => {
    const factor = value > 0 ? 1 / repetitionPenalty : repetitionPenalty;
    return [id, Math.fround(history.includes(id) ? value * factor : value) / temperature];
  });
  scores.sort(([a, x], [b, y]) => y - x || a - b);
  const last = scores[Math.min(topK, scores.length) - 1]![1];
  const normalise = (pairs: [number, number][]): [number, number][] => {
    const total = pairs.reduce((sum, [, weight]) => sum + weight, 0);
    return pairs.map(([id, weight]) => [id, weight / total]);
  };
  const kept = normalise(scores.filter(([, score]) => score >= last).map(([id, score]) => [id, Math.exp(score)]));
  const mass = kept.map((_, index) => kept.slice(0, index).reduce((sum, [, probability]) => sum + probability, 0));
  const least = Math.min(
    ...kept.filter((_, index) => mass[index]! < topP - 1e-12).map(([, probability]) => probability),
  );
  const nucleus = kept.filter(([, probability]) => topP === 1 || probability >= least);
  return normalise(nucleus);
}

describe('a sampler', () => {
  const logits = logs(0.5, 0.2, 0.3);

  it('is greedy unless told otherwise', () => {
    expect(createSampler()(Float32Array.of(1, 3, 3, 2), [])).toBe(1);
    expect(createSampler({ temperature: 0, topK: 2, seed: 3 })(Float32Array.of(1, 2, 9), [])).toBe(2);
    expect(createSampler({ repetitionPenalty: 2 })(Float32Array.of(5, 4), [0])).toBe(1);
  });

  it('draws the same tokens from the same seed, others from another', () => {
    const draws = (seed: number) => {
      const sample = createSampler({ temperature: 1, seed });
      return Array.from({ length: 50 }, () => sample(logits, []));
    };
    expect(draws(7)).toEqual(draws(7));
    expect(draws(7)).not.toEqual(draws(8));
  });

  it('draws every token as often as its probability says', () => {
    const sample = createSampler({ temperature: 1, seed: 1 });
    const counts = [0, 0, 0];
    for (let draw = 0; draw < 20_000; draw++) counts[sample(logits, [])]! += 1;
    // Five standard deviations of a binomial share are at most 5 * sqrt(0.25 / 20000) = 0.018.
    for (const [id, share] of [0.5, 0.2, 0.3].entries())
      expect(Math.abs(counts[id]! / 20_000 - share)).toBeLessThan(0.018);
  });

  it('never draws what was filtered', () => {
    const sample = createSampler({ temperature: 5, topK: 2, seed: 1 });
    for (let draw = 0; draw < 200; draw++) expect(sample(logits, [])).not.toBe(1);
  });

  it('names every option out of range in one error', () => {
    expect(() => createSampler({ temperature: -1, topK: 0, topP: 2, repetitionPenalty: 0, seed: 0.5 })).toThrow(
      expect.objectContaining({
        code: 'E_INPUT',
        message: expect.stringMatching(/temperature.*topK.*topP.*repetitionPenalty.*seed/),
      }),
    );
  });

  it('refuses a logit that is not a number', () => {
    expect(() => createSampler()(Float32Array.of(0, Number.NaN), [])).toThrow(/logit 1/);
  });
});

describe('argmax', () => {
  it('is the first of the largest', () => {
    expect(argmax(Float32Array.of(-3, -1, -2, -1))).toBe(1);
  });
});
