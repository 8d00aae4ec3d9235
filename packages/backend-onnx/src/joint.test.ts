import { referenceBackend } from '@dsla/reference';
import {
  type AttentionBackend,
  type Device,
  elementCount,
  f32,
  kvState,
  type LayerGraph,
  type Node,
  type WeightSource,
} from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { onnxBackend } from './index.js';

const [width, heads, kvHeads, headDim] = [32, 4, 2, 16];
const shapes: Readonly<Record<string, readonly number[]>> = {
  q: [heads * headDim, width],
  k: [kvHeads * headDim, width],
  v: [kvHeads * headDim, width],
  'q bias': [heads * headDim],
  'k bias': [kvHeads * headDim],
  'v bias': [kvHeads * headDim],
};
const bytesOf = (...names: readonly string[]): number =>
  names.reduce((sum, name) => sum + 4 * elementCount(shapes[name]!), 0);

const weights: WeightSource = {
  spec: (name) => ({ storage: 'f32', shape: shapes[name]! }),
  read: async (name) => {
    const seed = Object.keys(shapes).indexOf(name);
    const values = Array.from({ length: elementCount(shapes[name]!) }, (_, at) => Math.sin(1 + seed + 7 * at) / 3);
    return f32(shapes[name]!, Float32Array.from(values));
  },
};

const linear = (weight: string, biased: boolean): Node => ({
  op: 'linear',
  x: 0,
  weight,
  ...(biased && { bias: `${weight} bias` }),
});

const rope = { frequencies: Array.from({ length: headDim / 2 }, (_, pair) => 100 ** (-pair / 8)), rotaryDim: headDim };

/** v first, so that the order of the maps is not that of what attention reads. */
const attention = (biased: boolean): LayerGraph => ({
  name: 'attention',
  nodes: [
    { op: 'input', name: 'x', width },
    linear('v', biased),
    linear('q', biased),
    linear('k', biased),
    { op: 'softmaxAttention', q: 2, k: 3, v: 1, state: 'kv', heads, kvHeads, headDim, scale: 0.25, rope },
    { op: 'output', name: 'y', x: 4 },
  ],
  states: [kvState('kv', { kvHeads, headDim })],
});

const alone = (weight: string): LayerGraph => ({
  name: weight,
  nodes: [{ op: 'input', name: 'x', width }, linear(weight, false), { op: 'output', name: 'y', x: 1 }],
  states: [],
});

/** y of a prompt of 5 tokens, then of 3 tokens one by one. */
async function played(device: Device, graph: LayerGraph): Promise<number[]> {
  using layer = await device.compile(graph, weights);
  const states = Object.fromEntries(graph.states.map((spec) => [spec.name, device.createState(spec, 1, 8)]));
  const got: number[] = [];
  for (const [past, count] of [[0, 5], ...[5, 6, 7].map((past) => [past, 1] as const)] as [number, number][]) {
    const data = Float32Array.from({ length: count * width }, (_, at) => Math.cos(past * width + at));
    using x = device.upload(f32([count, width], data));
    using step = device.beginStep({ ids: new Int32Array(count), rows: [{ slot: 0, past, count }] }, { x });
    step.run(layer, states);
    await step.submit();
    got.push(...Array.from((await device.download(step.value('y'))).data, Number));
  }
  for (const store of Object.values(states)) store[Symbol.dispose]();
  return got;
}

async function reference(graph: LayerGraph): Promise<number[]> {
  await using device = await referenceBackend.open();
  return await played(device, graph);
}

const opened = async (extra: Record<string, string>): Promise<Device> =>
  await (onnxBackend satisfies AttentionBackend).open({ threads: 1, extra: { prepack: 'off', ...extra } });

function near(got: readonly number[], want: readonly number[]): void {
  expect(got.length).toBe(want.length);
  expect(Math.max(...got.map((y, at) => Math.abs(y - want[at]!)))).toBeLessThan(2e-5);
}

describe('projections that attention alone reads', () => {
  it.each([
    ['c-api', false],
    ['c-api', true],
    ['node', true],
  ])('binding %s, biased %s: as one product they give what three do', async (binding, biased) => {
    await using device = await opened({ binding });
    near(await played(device, attention(biased)), await reference(attention(biased)));
  });

  it('others read one of the weights where it lies: nothing is held twice', async () => {
    await using device = await opened({});
    using _ = await device.compile(attention(false), weights);
    expect(device.memory().bytes).toBe(bytesOf('q', 'k', 'v'));
    for (const weight of ['q', 'k', 'v']) {
      using layer = await device.compile(alone(weight), weights);
      expect(layer.graph.name).toBe(weight);
      expect(device.memory().bytes).toBe(bytesOf('q', 'k', 'v'));
      near(await played(device, alone(weight)), await reference(alone(weight)));
    }
  });

  it('a weight that is held already stays where it is, and attention takes three products', async () => {
    await using device = await opened({});
    using _ = await device.compile(alone('k'), weights);
    using layer = await device.compile(attention(false), weights);
    expect(layer.graph.name).toBe('attention');
    expect(device.memory().bytes).toBe(bytesOf('q', 'k', 'v'));
    near(await played(device, attention(false)), await reference(attention(false)));
  });

  it.each(['q8', 'q4'])('in blocks of %s the parts of a joint matrix are those of its members', async (format) => {
    await using joint = await opened({ weights: format });
    using _ = await joint.compile(attention(false), weights);
    const held = joint.memory().bytes;
    for (const weight of ['q', 'k', 'v']) {
      await using single = await opened({ weights: format });
      expect(await played(joint, alone(weight))).toEqual(await played(single, alone(weight)));
    }
    expect(joint.memory().bytes).toBe(held);
  });
});
