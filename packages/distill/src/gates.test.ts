import { type DualForm, f32 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { gateCosine, log2HalfLife, separation } from './gates.js';

const form = (gate: 'scalar' | 'vector', states = 2): DualForm => ({
  states,
  kvHeads: 2,
  headDim: 3,
  gate,
  temperature: 16,
  normaliser: false,
  ropeInState: false,
});
const wave = (count: number, size: number) =>
  Float32Array.from({ length: count }, (_, i) => size * Math.sin(1 + i * 1.7));

/** Largest difference of a term's gradient from central differences of its loss. */
function gradientError(of: ReturnType<typeof separation>, rows: number, logits: Float32Array): number {
  const shape = [rows, logits.length / rows];
  const gradient = of({ gates: f32(shape, logits) }).gradients.gates!.data;
  const step = 2 ** -7;
  return Math.max(
    ...Array.from(logits, (logit, i) => {
      const at = (value: number) => of({ gates: f32(shape, logits.with(i, value)) }).loss;
      return Math.abs((at(logit + step) - at(logit - step)) / (2 * step) - gradient[i]!);
    }),
  );
}

describe('log2HalfLife', () => {
  // Half-lives by the definition decay^n = 1/2.
  it.each([-20, -2, 0, 2, 6, 12])('of logit %d', (logit) => {
    const decay = (1 / (1 + Math.exp(-logit))) ** (1 / 16);
    expect(decay ** (2 ** log2HalfLife(logit, 16))).toBeCloseTo(0.5, 9);
  });
});

describe('separation', () => {
  it('is 0 when the states are as far apart as asked', () => {
    // 4,480 and 16 tokens: 8.1 octaves.
    const gates = f32([1, 4], Float32Array.of(6, 6, 0, 0));
    expect(separation(form('scalar'), 8)({ gates }).loss).toBe(0);
  });

  it('is the square of what is missing, mean over heads', () => {
    // Head 0: both states alike, 3 octaves missing; head 1: far enough.
    const gates = f32([2, 4], Float32Array.of(1, 6, 1, 0, 1, 6, 1, 0));
    expect(separation(form('scalar'), 3)({ gates }).loss).toBeCloseTo(9 / 2, 6);
  });

  it('has the gradient of its loss', () => {
    expect(gradientError(separation(form('scalar'), 3), 3, wave(12, 2))).toBeLessThan(1e-3);
    expect(gradientError(separation(form('scalar', 3), 3), 2, wave(12, 2))).toBeLessThan(1e-3);
  });

  it('pushes the far state up and the near one down', () => {
    const { gradients } = separation(form('scalar'), 3)({ gates: f32([1, 4], new Float32Array(4)) });
    expect([...gradients.gates!.data].map(Math.sign)).toEqual([-1, -1, 1, 1]);
  });
});

describe('gateCosine', () => {
  it('is 1 for equal gates and the cosine of the decays otherwise', () => {
    const equal = f32([1, 12], Float32Array.of(1, -2, 3, 0, 1, 0, 1, -2, 3, 0, 1, 0));
    expect(gateCosine(form('vector'))({ gates: equal }).loss).toBeCloseTo(1, 9);
    // Decays [1, 1, 0] and [0, 1, 1] in one head, equal in the other: (1/2 + 1) / 2.
    const [open, shut] = [1000, -1e5];
    const half = f32([1, 12], Float32Array.of(open, open, shut, 0, 0, 0, shut, open, open, 0, 0, 0));
    expect(gateCosine(form('vector'))({ gates: half }).loss).toBeCloseTo(0.75, 6);
  });

  it('has the gradient of its loss', () => {
    expect(gradientError(gateCosine(form('vector')), 2, wave(24, 30))).toBeLessThan(1e-4);
  });
});
