import { describe, expect, it } from 'vitest';
import type { DualForm, LayerGraph } from './graph.js';
import { inlineCalls } from './inline.js';
import { joinGraphs } from './join.js';
import { dualState, kvState, ringIndex } from './layouts.js';
import { stateBytes } from './state.js';
import { checkBatch, inferWidths, weightsOf } from './validate.js';

const shapes: Record<string, readonly number[]> = { up: [6, 4], down: [4, 6], norm: [4], table: [10, 4], mix: [1, 2] };
const shapeOf = (name: string): readonly number[] => shapes[name] ?? [];

const feedForward: LayerGraph = {
  name: 'layers.0.output',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width: 4 },
    { op: 'rmsNorm', x: 0, weight: 'norm', eps: 1e-5 },
    { op: 'linear', x: 1, weight: 'up' },
    { op: 'activate', x: 2, fn: 'silu' },
    { op: 'linear', x: 3, weight: 'down' },
    { op: 'add', a: 0, b: 4 },
    { op: 'output', name: 'x', x: 5 },
  ],
};

const published: DualForm = {
  states: 2,
  kvHeads: 2,
  headDim: 2,
  gate: 'vector',
  temperature: 16,
  normaliser: false,
  ropeInState: false,
};

describe('inferWidths', () => {
  it('derives every width', () => {
    expect(inferWidths(feedForward, shapeOf)).toEqual([4, 4, 6, 6, 4, 4, 0]);
  });

  const broken: [string, LayerGraph['nodes'], RegExp][] = [
    [
      'later operand',
      [{ op: 'activate', x: 0, fn: 'silu' }],
      /node 0 \(activate\): operands must be earlier nodes, got 0/,
    ],
    ['unlike widths', [...feedForward.nodes.slice(0, 3), { op: 'add', a: 0, b: 2 }], /b must be 4 wide, got 6/],
    [
      'weight shape',
      [
        { op: 'input', name: 'x', width: 5 },
        { op: 'linear', x: 0, weight: 'up' },
      ],
      /weight up must be \[\*, 5\], got \[6, 4\]/,
    ],
    [
      'slice out of range',
      [
        { op: 'input', name: 'x', width: 4 },
        { op: 'slice', x: 0, from: 2, to: 5 },
      ],
      /within 0\.\.4/,
    ],
    [
      'unlisted state',
      [
        { op: 'input', name: 'x', width: 4 },
        { op: 'softmaxAttention', q: 0, k: 0, v: 0, state: 'kv', heads: 2, kvHeads: 2, headDim: 2, scale: 1 },
      ],
      /listed in graph.states/,
    ],
    [
      'gates of the wrong width',
      [
        { op: 'input', name: 'x', width: 4 },
        {
          op: 'dualLinearAttention',
          q: 0,
          k: 0,
          v: 0,
          gates: 0,
          mix: 'mix',
          state: 's',
          heads: 2,
          scale: 1,
          form: published,
        },
      ],
      /gates must be 8 wide, got 4/,
    ],
    [
      'exact part without normaliser',
      [
        { op: 'input', name: 'x', width: 4 },
        {
          op: 'dualLinearAttention',
          q: 0,
          k: 0,
          v: 0,
          gates: 0,
          mix: 'mix',
          state: 's',
          heads: 2,
          scale: 1,
          form: { ...published, exact: { window: 4, sinks: 0, logWeight: 'w' } },
        },
      ],
      /needs a normaliser/,
    ],
  ];
  it.each(broken)('refuses %s', (_, nodes, message) => {
    expect(() => inferWidths({ name: 'g', nodes, states: [] }, shapeOf)).toThrow(message);
  });
});

describe('states', () => {
  it('counts bytes from shapes alone', () => {
    const kv = kvState('kv', { kvHeads: 2, headDim: 8 });
    expect(stateBytes(kv, 100)).toBe(2 * 2 * 100 * 8 * 4);
    expect(stateBytes(kv, 100, 'f16')).toBe(2 * 2 * 100 * 8 * 2);
    expect(stateBytes(dualState('s', published), 100, 'f16')).toBe(2 * 2 * 2 * 2 * 4);
  });

  it('keeps sinks in place and wraps the window behind them', () => {
    expect([0, 1, 2, 3, 4, 5, 6].map((token) => ringIndex(token, 3, 2))).toEqual([0, 1, 2, 3, 4, 2, 3]);
  });
});

describe('checkBatch', () => {
  const ids = new Int32Array(3);
  const row = { slot: 0, past: 0, count: 3 };
  it('accepts rows that fill the ids', () => {
    expect(() => checkBatch({ ids, rows: [row] }, 1, 3)).not.toThrow();
  });
  it.each([
    ['no rows', [], /at least one row/],
    ['slot out of range', [{ ...row, slot: 1 }], /slot must be an integer in 0\.\.0, got 1/],
    [
      'slot twice',
      [
        { ...row, count: 1 },
        { ...row, count: 2 },
      ],
      /one row only/,
    ],
    ['capacity', [{ ...row, past: 1 }], /past \+ count must be at most the capacity 3, got 4/],
    ['ids that do not fill the rows', [{ ...row, count: 2 }], /ids must hold the 2 tokens/],
  ])('refuses %s', (_, rows, message) => {
    expect(() => checkBatch({ ids, rows }, 1, 3)).toThrow(message);
  });
});

describe('joinGraphs', () => {
  it('lets values flow inside and keeps only the outputs asked for', () => {
    const joined = joinGraphs([feedForward, { ...feedForward, name: 'layers.1.output' }], new Set(['x']));
    expect(joined.name).toBe('layers.0.output..layers.1.output');
    expect(joined.nodes.filter(({ op }) => op === 'input')).toHaveLength(1);
    expect(joined.nodes.filter(({ op }) => op === 'output')).toEqual([{ op: 'output', name: 'x', x: 10 }]);
    expect(inferWidths(joined, shapeOf)).toEqual([4, 4, 6, 6, 4, 4, 4, 6, 6, 4, 4, 0]);
    expect(weightsOf(joined)).toEqual(['norm', 'up', 'down']);
  });
});

describe('inlineCalls', () => {
  const call: LayerGraph = {
    name: 'g',
    states: [],
    nodes: [
      { op: 'input', name: 'x', width: 4 },
      { op: 'activate', x: 0, fn: 'silu' },
      { op: 'call', kind: 'acme/mlp', inputs: [1], body: feedForward },
      { op: 'output', name: 'y', x: 2 },
    ],
  };
  it('binds inputs and takes the first output of the body', () => {
    const inlined = inlineCalls(call);
    expect(inlined.nodes.map(({ op }) => op)).toEqual([
      'input',
      'activate',
      'rmsNorm',
      'linear',
      'activate',
      'linear',
      'add',
      'output',
    ]);
    expect(inlined.nodes[6]).toEqual({ op: 'add', a: 1, b: 5 });
    expect(inlined.nodes[7]).toEqual({ op: 'output', name: 'y', x: 6 });
    expect(inferWidths(inlined, shapeOf).at(-2)).toBe(inferWidths(call, shapeOf)[2]);
  });
  it('leaves kinds that a backend knows', () => {
    expect(inlineCalls(call, (kind) => kind === 'acme/mlp')).toBe(call);
  });
});
