import { describe as describeModel, type Mixers, parseConfig, shapes } from '@dsla/models';
import { inlineCalls } from '@dsla/spec';
import { expect, it } from 'vitest';
import { lower } from './lower.js';

const mixers: Mixers = {
  foldable: { kind: 'dual' },
  scalar: { kind: 'dual', featureMap: 'none', normaliser: false, ropeInState: true },
  vector: { kind: 'dual', gate: 'vector', featureMap: 'none', normaliser: false, ropeInState: true },
};

it('keeps scratch of a prompt of 32,768 tokens in buffers of less than 2 GiB, whatever the mixer', () => {
  const model = describeModel(parseConfig({ ...shapes['llama2-7b'], num_hidden_layers: 1 }), { mixers });
  const traits = { type: 'f16', lanes: 32, threads: 1024, matrices: true } as const;
  for (const mixer of ['default', ...Object.keys(mixers)])
    for (const { versions } of model.segments) {
      const graph = inlineCalls(versions[mixer] ?? versions.default);
      const { slots } = lower(graph, (name) => model.weights[name]!.shape, traits);
      for (const { token, row, chunk, once } of slots)
        expect(Math.max(32768 * token, row, 128 * chunk, once), mixer).toBeLessThan(2 ** 31 - 4);
    }
});
