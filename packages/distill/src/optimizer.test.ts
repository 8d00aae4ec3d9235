import { f32 } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { adamW, adamWState, added, globalNorm, rateAt, scaled } from './optimizer.js';

const matrix = (...values: number[]) => f32([2, 2], Float32Array.from(values));
const vector = (...values: number[]) => f32([3], Float32Array.from(values));

// PyTorch 2.14.1: AdamW(betas (0.9, 0.95), eps 1e-8), decay 0.1 for w and 0 for b, clip_grad_norm_ at 1 before each step.
const rates = [1e-2, 5e-3, 2e-2];
const gradients = [
  { w: matrix(0.1, -0.3, 4, 0), b: vector(1, -2, 0.5) },
  { w: matrix(-0.2, 0.3, 1, 1e-4), b: vector(-1, 0, 0.25) },
  { w: matrix(5, 0.01, -3, 2), b: vector(0.3, 0.3, -0.3) },
];
const norms = [4.620606422424316, 1.4807093143463135, 6.186283111572266];
const want = [
  { w: [0.4895000159740448, -0.9890000224113464, 1.9880000352859497, 0.24975000321865082], b: [0.09, -0.19, 2.99] },
  {
    w: [0.49236246943473816, -0.9910014867782593, 1.982060432434082, 0.2459510713815689],
    b: [0.09249602258205414, -0.186606764793396, 2.9850854873657227],
  },
  {
    w: [0.4806623160839081, -0.996934175491333, 1.9692388772964478, 0.23299236595630646],
    b: [0.09941992908716202, -0.17751216888427734, 2.973175048828125],
  },
];

describe('adamW', () => {
  it('takes the steps of PyTorch, clipping included', () => {
    let weights: Record<string, ReturnType<typeof f32>> = { w: matrix(0.5, -1, 2, 0.25), b: vector(0.1, -0.2, 3) };
    const state = adamWState(weights);
    for (const [step, gradient] of gradients.entries()) {
      const norm = globalNorm(gradient);
      expect(norm).toBeCloseTo(norms[step]!, 6);
      const clipped = scaled(gradient, Math.min(1, 1 / (norm + 1e-6)));
      weights = adamW(weights, clipped, state, () => rates[step]!, {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        decay: 0.1,
      });
      for (const name of ['w', 'b'] as const) {
        for (const [i, value] of want[step]![name].entries()) expect(weights[name]!.data[i]).toBeCloseTo(value, 6);
      }
    }
    expect(state.step).toBe(3);
  });

  it('leaves its inputs alone, so that the best values seen can be kept', () => {
    const before = { w: matrix(1, 2, 3, 4) };
    const options = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, decay: 0 };
    adamW(before, { w: matrix(1, 1, 1, 1) }, adamWState(before), () => 0.1, options);
    expect([...before.w.data]).toEqual([1, 2, 3, 4]);
  });

  it('takes every weight at its own rate', () => {
    const before = { slow: vector(1, 2, 3), fast: vector(1, 2, 3) };
    const gradient = { slow: vector(1, 1, 1), fast: vector(1, 1, 1) };
    const options = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, decay: 0 };
    const { slow, fast } = adamW(before, gradient, adamWState(before), (name) => (name === 'fast' ? 0.5 : 0), options);
    expect([...slow!.data]).toEqual([1, 2, 3]);
    expect([...fast!.data]).toEqual([0.5, 1.5, 2.5].map((x) => expect.closeTo(x, 6))); // the first step is the rate itself
  });

  it('refuses weights that are not f32', () => {
    const half = { h: { dtype: 'f16', shape: [1], data: new Uint16Array(1) } } as const;
    expect(() => scaled(half, 2)).toThrow(/h: must be f32 to be trained, got "f16"/);
  });
});

describe('added', () => {
  it('is the sum: the mean over two halves is the gradient of the whole', () => {
    const sum = added({ b: vector(1, 2, 3) }, { b: vector(3, 0, -1) });
    expect([...scaled(sum, 0.5).b!.data]).toEqual([2, 1, 1]);
  });
});

describe('rateAt', () => {
  it('is the cosine of PyTorch after the warm-up', () => {
    // CosineAnnealingLR(lr 0.3, T_max 6, eta_min 0.03)
    const cosine = [0.3, 0.28191342951089926, 0.2325, 0.165, 0.0975, 0.048086570489100776, 0.03];
    const schedule = { peak: 0.3, warmUp: 3, steps: 10, floor: 0.1 };
    for (const [step, rate] of cosine.entries()) expect(rateAt(step + 3, schedule)).toBeCloseTo(rate, 12);
    expect([0, 1, 2].map((step) => rateAt(step, schedule))).toEqual([0.1, 0.2, 0.3].map((x) => expect.closeTo(x, 12)));
  });

  it('is positive and finite for a single step', () => {
    expect(rateAt(0, { peak: 1, warmUp: 0, steps: 1, floor: 0.1 })).toBe(1);
    expect(rateAt(0, { peak: 1, warmUp: 1, steps: 1, floor: 0.1 })).toBe(1);
  });
});
