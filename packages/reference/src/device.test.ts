import { f32, kvState, type LayerGraph, type Node, type Row, type StateSpec, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { referenceBackend } from './index.js';

// What the contract leaves open and this device decides. Everything else: the conformance suite.

const weights: Readonly<Record<string, readonly number[][]>> = {
  table: [[1], [2], [3], [4]],
  double: [[2]],
};

const source: WeightSource = {
  spec: (name) => ({ storage: 'f32', shape: [weights[name]!.length, weights[name]![0]!.length] }),
  read: async (name) =>
    f32([weights[name]!.length, weights[name]![0]!.length], Float32Array.from(weights[name]!.flat())),
};

function graph(name: string, nodes: readonly Node[], states: readonly StateSpec[] = []): LayerGraph {
  return { name, nodes, states };
}

const embed = graph('embed', [
  { op: 'embed', table: 'table' },
  { op: 'output', name: 'x', x: 0 },
]);
const double = graph('double', [
  { op: 'input', name: 'x', width: 1 },
  { op: 'linear', x: 0, weight: 'double' },
  { op: 'output', name: 'y', x: 1 },
]);
const last = graph('last', [
  { op: 'input', name: 'x', width: 1 },
  { op: 'lastToken', x: 0 },
  { op: 'output', name: 'last', x: 1 },
]);

async function run(
  graphs: readonly LayerGraph[],
  counts: readonly number[],
  ids: readonly number[],
  rows?: readonly number[],
) {
  const device = await referenceBackend.open();
  const layers = await Promise.all(graphs.map((one) => device.compile(one, source)));
  const batch: Row[] = counts.map((count, slot) => ({ slot, past: 0, count }));
  const step = device.beginStep({ ids: Int32Array.from(ids), rows: batch });
  layers.forEach((layer, index) => {
    step.run(layer, {}, index === 0 ? undefined : rows);
  });
  await step.submit();
  return async (name: string) => [...(await device.download(step.value(name))).data];
}

describe('reference device', () => {
  it('leaves NaN where no run has written a value', async () => {
    const value = await run([embed, double], [2, 1], [0, 1, 2], [1]);
    expect(await value('y')).toEqual([Number.NaN, Number.NaN, 6]);
  });

  it('gives NaN for the last token of a row without tokens', async () => {
    const value = await run([embed, last], [2, 0, 1], [0, 1, 2]);
    expect(await value('last')).toEqual([2, Number.NaN, 3]);
  });

  it('runs layers over values of one vector a row', async () => {
    const rename = graph('rename', [
      { op: 'input', name: 'last', width: 1 },
      { op: 'output', name: 'x', x: 0 },
    ]);
    const value = await run([embed, last, rename, double], [2, 1], [0, 1, 3]);
    expect(await value('y')).toEqual([4, 8]);
  });

  it('refuses a token id beyond the table before anything is computed', async () => {
    await expect(run([embed], [2], [1, 4])).rejects.toThrow('embed node 0 (embed): token ids must be in 0..3, got 4.');
  });

  it('refuses a mechanism over the last tokens only', async () => {
    const state = kvState('kv', { kvHeads: 1, headDim: 1 });
    const late = graph(
      'late',
      [
        { op: 'embed', table: 'table' },
        { op: 'lastToken', x: 0 },
        { op: 'softmaxAttention', q: 1, k: 1, v: 1, state: 'kv', heads: 1, kvHeads: 1, headDim: 1, scale: 1 },
      ],
      [state],
    );
    await expect(run([late], [1], [1])).rejects.toThrow('late node 2 (softmaxAttention): operands must be per token');
  });

  it('refuses a state that is laid out for another node', async () => {
    const state = kvState('kv', { kvHeads: 2, headDim: 1 });
    const node: Node = {
      op: 'softmaxAttention',
      q: 0,
      k: 0,
      v: 0,
      state: 'kv',
      heads: 1,
      kvHeads: 1,
      headDim: 1,
      scale: 1,
    };
    const wrong = graph('wrong', [{ op: 'embed', table: 'table' }, node], [state]);
    await expect(run([wrong], [1], [1])).rejects.toThrow(
      /wrong node 1 \(softmaxAttention\): state kv must hold keys compute \[1, /,
    );
  });

  it('cannot fold a ring that no longer holds all tokens', async () => {
    const ring = kvState('kv', { kvHeads: 1, headDim: 1, window: { size: 4, sinks: 1 } });
    const dual: StateSpec = {
      name: 'dual',
      kind: 'dual',
      parts: [{ name: 'state', dtype: 'f32', shape: [1, 1, 1, 1] }],
    };
    const form = {
      states: 1,
      kvHeads: 1,
      headDim: 1,
      gate: 'scalar',
      temperature: 16,
      normaliser: false,
      ropeInState: false,
    } as const;
    const fold = graph(
      'fold',
      [{ op: 'foldState', from: 'kv', to: 'dual', gateSource: 'value', gateWeight: 'double', form }],
      [ring, dual],
    );
    const device = await referenceBackend.open();
    const layer = await device.compile(fold, source);
    const stores = { kv: device.createState(ring, 1, 64), dual: device.createState(dual, 1, 64) };
    const step = (past: number) => device.beginStep({ ids: new Int32Array(0), rows: [{ slot: 0, past, count: 0 }] });
    expect(() => step(5).run(layer, stores)).not.toThrow();
    expect(() => step(6).run(layer, stores)).toThrow(
      'fold node 0 (foldState) row 0: the cache must hold all past tokens, at most 5, got 6.',
    );
  });

  it('refuses two shapes under one name', async () => {
    const device = await referenceBackend.open();
    using _ = await device.compile(embed, source);
    const other: WeightSource = {
      spec: () => ({ storage: 'f32', shape: [1, 1] }),
      read: async () => f32([1, 1], new Float32Array(1)),
    };
    const memory = device.memory();
    await expect(device.compile(embed, other)).rejects.toThrow(
      'weight table: must have one shape on a device, [1, 1], got [4, 1].',
    );
    expect(device.memory()).toEqual(memory);
  });

  it('computes in float64 only', async () => {
    expect(await referenceBackend.obstacles({ computeType: 'f16' })).toHaveLength(1);
    await expect(referenceBackend.open({ computeType: 'f16' })).rejects.toMatchObject({ code: 'E_UNAVAILABLE' });
  });
});
