import { describe, expect, it } from 'vitest';
import { rotated } from '../rope.js';
import { activations, erf, logSigmoid } from './activate.js';
import { causalConv } from './causal-conv.js';
import { dot, linear } from './linear.js';
import { selectiveScan } from './selective-scan.js';

// Small cases worked by hand or taken from tables; golden vectors and the conformance suite hold the rest.

const f64 = (...values: number[]) => Float64Array.from(values);

describe('linear', () => {
  it('gives every row the same bits, whatever stands beside it', () => {
    const width = 37;
    const value = (i: number) => Math.sin(i * 12.9898) * 43758.5453;
    const x = Float64Array.from({ length: 9 * width }, (_, i) => value(i) % 1);
    const weight = {
      shape: [11, width],
      data: Float64Array.from({ length: 11 * width }, (_, i) => value(i + 5000) % 1),
    };
    const together = linear(x, weight);
    for (let row = 0; row < 9; row++) {
      const alone = linear(x.subarray(row * width, (row + 1) * width), weight);
      expect(together.subarray(row * 11, (row + 1) * 11)).toEqual(alone);
      alone.forEach((y, column) => {
        expect(y).toBe(dot(x, row * width, weight.data, column * width, width));
      });
    }
  });
});

describe('activations', () => {
  // Abramowitz and Stegun, table 7.1
  it.each([
    [0, 0],
    [0.5, 0.5204998778],
    [1, 0.8427007929],
    [2, 0.995322265],
    [-1, -0.8427007929],
    [7, 1],
    [-7, -1],
  ])('erf(%d) = %d', (x, y) => expect(erf(x)).toBeCloseTo(y, 10));

  it('softplus is linear above 20 and exact below', () => {
    expect(activations.softplus(25)).toBe(25);
    expect(activations.softplus(0)).toBeCloseTo(Math.LN2, 15);
    expect(activations.softplus(-800)).toBe(0);
  });

  it('logSigmoid neither overflows nor vanishes', () => {
    expect(logSigmoid(-1000)).toBe(-1000);
    expect(logSigmoid(50)).toBeCloseTo(-1.9287498479639178e-22, 30);
    expect(logSigmoid(0)).toBeCloseTo(-Math.LN2, 15);
  });
});

it('rope turns the pairs (i, i + rotaryDim/2) and leaves the rest', () => {
  const quarter = { rotaryDim: 4, frequencies: [Math.PI / 2, 0] };
  const turned = rotated(f64(1, 2, 3, 4, 5, 6), 6, quarter, 1);
  [-3, 2, 1, 4, 5, 6].forEach((x, i) => {
    expect(turned[i]).toBeCloseTo(x, 14);
  });
});

it('causalConv: the last tap meets the current token, the state holds the oldest input first', () => {
  const state = f64(10, 20);
  const y = causalConv(f64(1, 2), { shape: [1, 1, 3], data: f64(100, 10, 1) }, { shape: [1], data: f64(0.5) }, state);
  expect(y).toEqual(f64(1000 + 200 + 1 + 0.5, 2000 + 10 + 2 + 0.5));
  expect(state).toEqual(f64(1, 2));
});

it('selectiveScan: channels of a head share b and c', () => {
  const state = f64(1, 1);
  const logA = { shape: [2, 1, 1], data: f64(0, Math.log(2)) };
  const d = { shape: [2, 1], data: f64(0, 3) };
  const y = selectiveScan(f64(5, 7), f64(Math.LN2, 1), f64(1, 0), f64(2, 1), logA, d, state);
  expect(state[0]).toBeCloseTo(0.5 + Math.LN2 * 5, 14); // e^(-ln 2) 1 + dt b x
  expect(y[0]).toBeCloseTo(2 * (0.5 + Math.LN2 * 5), 14);
  expect(y[1]).toBeCloseTo(Math.exp(-2) + 21, 14);
});
