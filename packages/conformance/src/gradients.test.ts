import { inferWidths } from '@dsla/spec';
import { expect, test } from 'vitest';
// In float64 throughout: a device rounds what goes in and out to float32, which differences would magnify.
import { interpret } from '../../reference/src/interpret.js';
import { type Golden, readGolden } from './golden.js';
import { type Play, playOf } from './golden-plays.js';
import { normals } from './random.js';

// Does autograd of PyTorch differentiate the function that the reference computes? Derivatives along random directions, by finite
// differences of the reference, against the golden gradients. Tapes and gradients that disagreed would train another layer.

test.each([
  'attention-h16-t5-p40-gqa',
  'attention-h8-t33-p40-window',
  'rms-norm-48',
  'gla-t63-h1-16x16-h0',
  'dsla-published-h3x8',
  'foldable-gqa-s2-w8-t37',
  'foldable-gqa-s2-w8-t37-rope',
  'foldable-mha-s1-w1-t37',
  'scan-t33-heads2-state',
  'scan-t5-softplus25',
  'conv-t9-state',
])('%s', (name) => {
  const golden = readGolden(`ops/${name}.safetensors`);
  const play = playOf(golden);
  const point = pointOf(golden, play);
  const inputs = Object.keys(point).filter((input) => golden.tensors.has(`d.${input}`));
  expect(inputs.length).toBeGreaterThan(1);
  for (const input of inputs) {
    const want = Float64Array.from(golden.tensors.get(`d.${input}`)!.data);
    const direction = normals(`${name} ${input}`, want.length);
    const expected = want.reduce((sum, x, i) => sum + x * direction[i]!, 0);
    const got = derivative((step) => {
      const moved = point[input]!.map((x, i) => x + step * direction[i]!);
      return loss(golden, play, { ...point, [input]: moved });
    }, 1e-5); // so small that no maximum inside phi or the softmax changes hands
    const size = Math.sqrt(want.reduce((sum, x) => sum + x * x, 0)); // of a typical derivative along such a direction
    const text = `${input}: ${got} by differences, ${expected} by autograd`;
    expect(Math.abs(got - expected), text).toBeLessThan(1e-6 * size + 1e-7); // 1e-7: what cancellation leaves, 1e-12 / h
  }
});

/** Inputs, weights and the state at the start, by the names of their golden tensors. */
type Point = Readonly<Record<string, Float64Array>>;

function pointOf({ tensors }: Golden, { inputs, tape, start }: Play): Point {
  const named = [
    ...Object.entries(inputs),
    ...Object.entries(tape.weights).map(([name, { data }]) => [name, { data: data! }] as const),
  ];
  const point = Object.fromEntries(named.map(([name, { data }]) => [name, Float64Array.from(data)]));
  const initial = tensors.has('state0') ? 'state0' : 'h0';
  return start && tensors.has(initial) ? { ...point, [initial]: Float64Array.from(start[0]!.data) } : point;
}

/** sum(output * do) (+ sum(state * dstate)), as the golden gradients are defined. */
function loss({ tensors }: Golden, { tape, past = 0, start, tokens }: Play, point: Point): number {
  const { graph, weights } = tape;
  const count = tensors.get('do')!.shape[0]!;
  const parts = (start ?? []).map(({ data }) => Float64Array.from(data));
  const initial = point.state0 ?? point.h0;
  if (initial) parts[0] = initial.slice();
  if (parts.length === 0) {
    const sizes = graph.states
      .flatMap((spec) => spec.parts)
      .map(({ shape }) => shape.map((n) => (n === 'tokens' ? (tokens ?? count) : n)));
    parts.push(...sizes.map((shape) => new Float64Array(shape.reduce((a, b) => a * b, 1))));
  }
  let total = 0;
  const add = (values: Float64Array, cotangent: string) => {
    tensors.get(cotangent)?.data.forEach((y, i) => {
      total += y * values[i]!;
    });
  };
  interpret(
    {
      graph,
      widths: inferWidths(graph, (name) => weights[name]!.shape),
      weights: new Map(Object.entries(weights).map(([name, { shape }]) => [name, { shape, data: point[name]! }])),
    },
    {
      ids: () => new Int32Array(count),
      rows: [{ slot: 0, past, count }],
      read: (name) => point[name]!,
      write: (name, values) => (name === 'mixed' ? undefined : add(values, 'do')),
      parts: () => parts,
    },
  );
  if (parts[0]) add(parts[0], 'dstate');
  return total;
}

/** Central difference of fourth order. */
function derivative(f: (step: number) => number, h: number): number {
  return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h);
}
