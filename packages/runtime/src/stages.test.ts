import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe as describeModel, type Mixers, parseConfig } from '@dsla/models';
import { describe, expect, it } from 'vitest';
import { goldenModel } from '../test/files.js';
import { type StageGraphs, stagesOf } from './stages.js';

const model = (name: string, mixers: Mixers = {}) =>
  describeModel(parseConfig(JSON.parse(readFileSync(join(goldenModel(name), 'config.json'), 'utf8'))), { mixers });
const mixers = { foldable: { kind: 'dual' }, published: { kind: 'published' } } as const;
const shapes = (stages: readonly StageGraphs[]) => stages.map(({ layer, versions }) => [layer, [...versions.keys()]]);
const outputs = ({ versions }: StageGraphs) =>
  [...versions.values()].map(({ nodes }) => nodes.flatMap((node) => (node.op === 'output' ? [node.name] : [])));

describe('stages', () => {
  it('are one program where the plan is fixed and the device takes runs', () => {
    for (const [name, plan] of [
      ['llama-base', ['foldable', 'default']],
      ['llama-base', ['published', 'foldable']],
    ] as const) {
      const stages = stagesOf(model(name, mixers), 'run', plan);
      expect(shapes(stages)).toEqual([[undefined, ['default']]]);
      expect(outputs(stages[0]!)).toEqual([['x']]);
    }
    expect(stagesOf(model('zamba-a'), 'run')).toHaveLength(1);
  });

  it('hold the chosen mechanism of every layer', () => {
    const [stage] = stagesOf(model('llama-base', mixers), 'run', ['foldable', 'default']);
    const { nodes, states } = stage!.versions.get('default')!;
    expect(nodes.map(({ op }) => op).filter((op) => op.endsWith('Attention'))).toEqual([
      'dualLinearAttention',
      'softmaxAttention',
    ]);
    expect(states.map(({ name }) => name)).toEqual(['layers.0.foldable', 'layers.1.kv']);
  });

  it('are the segments where the device takes segments', () => {
    const description = model('llama-base', { foldable: mixers.foldable });
    expect(stagesOf(description, 'segment')).toHaveLength(description.segments.length);
    const fixed = stagesOf(description, 'segment', ['foldable', 'default']);
    expect(fixed.every(({ versions }) => versions.size === 1)).toBe(true);
  });

  it('are joined between the mechanisms where the plan may change', () => {
    const versions = ['default', 'foldable'];
    const stages = stagesOf(model('llama-base', { foldable: mixers.foldable }), 'run');
    expect(shapes(stages).map(([layer, names]) => [layer, [...(names as string[])].sort()])).toEqual([
      [undefined, ['default']],
      [0, versions],
      [undefined, ['default']],
      [1, versions],
      [undefined, ['default']],
    ]);
    expect(stages.map((stage) => outputs(stage)[0]!.sort())).toEqual([
      ['k', 'q', 'v', 'x'],
      ['o'],
      ['k', 'q', 'v', 'x'],
      ['o'],
      ['x'],
    ]);
  });
});
