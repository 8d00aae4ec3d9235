import { type DualForm, dualState, gateWidth, kvState, type LayerGraph, type Node } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { type Dialect, onCpu, onCuda } from '../dialect.js';
import { compileProgram, modelsOf } from '../program.js';

const heads = 4;
const plain: DualForm = {
  states: 2,
  kvHeads: 2,
  headDim: 16,
  gate: 'vector',
  temperature: 16,
  normaliser: false,
  ropeInState: false,
};
const foldable: DualForm = {
  ...plain,
  gate: 'scalar',
  rope: { rotaryDim: 16, frequencies: [1, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005] },
  normaliser: true,
  featureMap: { kind: 'exp', query: 'query', key: 'key' },
  exact: { window: 8, sinks: 2, logWeight: 'logWeight' },
};

/** Kinds of operators of our own in the models of a tape with a dual node, or a fold. */
function kindsOf(form: DualForm, dialect: Dialect, { folds = false, rows = 8 } = {}): string[] {
  const { kvHeads, headDim } = form;
  const widths = [heads * headDim, kvHeads * headDim, kvHeads * headDim, gateWidth(form)];
  const own = { mix: 'mix', state: 's', heads, scale: 1, form };
  const nodes: Node[] = [
    ...widths.map((width, at): Node => ({ op: 'input', name: `i${at}`, width })),
    { op: 'dualLinearAttention', q: 0, k: 1, v: 2, gates: 3, ...own },
    { op: 'output', name: 'o', x: 4 },
  ];
  const fold: Node = { op: 'foldState', from: 'kv', to: 's', gateSource: 'value', gateWeight: 'gate', form };
  const states = [dualState('s', form, rows), ...(folds ? [kvState('kv', { kvHeads, headDim })] : [])];
  const graph: LayerGraph = { name: 'tape', nodes: folds ? [fold] : nodes, states };
  const shapes: Record<string, number[]> = {
    mix: [1, form.states],
    logWeight: [heads],
    query: [heads, rows, headDim],
    key: [kvHeads, rows, headDim],
    gate: [gateWidth(form), kvHeads * headDim],
  };
  const program = compileProgram(
    graph,
    (name) => shapes[name]!,
    { standIn: undefined, dialect },
    () => false,
  );
  const names = modelsOf(program).flatMap(({ operators }) => operators.map(({ name }) => name.split(' ')[0]!));
  return [...new Set(names)].sort();
}

const own = onCuda('float16', true);

describe('dual linear attention by operators of our own', () => {
  it('of prompts, folds and, with an exact part, tokens', () => {
    expect(kindsOf(plain, own)).toEqual(['DualLinearAttention']);
    expect(kindsOf(foldable, own)).toEqual(['DualLinearAttention', 'DualStep']);
    expect(kindsOf(plain, own, { folds: true })).toEqual(['DualLinearAttention', 'Replay']);
    expect(kindsOf(foldable, own, { folds: true })).toEqual(['DualLinearAttention', 'Replay']);
  });

  it.each([
    ['on the CPU', onCpu],
    ['in float32', onCuda('float', true)],
    ['where the device has none', onCuda('float16')],
  ])('not %s', (_, dialect) => {
    for (const form of [plain, foldable]) expect(kindsOf(form, dialect)).toEqual([]);
  });

  it('not of widths that are no multiples of 8, nor of a normaliser without an exact part', () => {
    const { exact: _, ...alone } = foldable;
    expect(kindsOf({ ...plain, headDim: 12 }, own)).toEqual([]);
    expect(kindsOf(foldable, own, { rows: 5 })).toEqual([]);
    expect(kindsOf(alone, own)).toEqual([]);
  });
});
