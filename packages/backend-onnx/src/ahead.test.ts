import { setTimeout as later } from 'node:timers/promises';
import { f32, type HostTensor, type LayerGraph, type Step, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import type { OnnxDevice } from './device.js';
import { onnxBackend } from './index.js';

const vocabulary = 32;
/** What follows a token: 5 is prime to 32, so all tokens come. */
const after = (token: number): number => (5 * token + 3) % vocabulary;

const body: LayerGraph = {
  name: 'body',
  nodes: [
    { op: 'embed', table: 'one' },
    { op: 'output', name: 'x', x: 0 },
  ],
  states: [],
};
const head: LayerGraph = {
  name: 'head',
  nodes: [
    { op: 'input', name: 'x', width: vocabulary },
    { op: 'lastToken', x: 0 },
    { op: 'linear', x: 1, weight: 'next' },
    { op: 'output', name: 'logits', x: 2 },
  ],
  states: [],
};
const weights: WeightSource = {
  spec: () => ({ storage: 'f32', shape: [vocabulary, vocabulary] }),
  read: async (name) => {
    const data = new Float32Array(vocabulary ** 2);
    for (let token = 0; token < vocabulary; token++)
      data[name === 'one' ? token * (vocabulary + 1) : after(token) * vocabulary + token] = 1;
    return f32([vocabulary, vocabulary], data);
  },
};

interface Drawn {
  readonly step: Step;
  readonly ids: Promise<readonly [HostTensor, unknown]>;
}

describe.each(['c-api', 'node'])(
  'steps that are handed over before the tokens of the last are known, binding %s',
  (binding) => {
    it.each([1, 3])('%i rows: every token follows the one before it', async (rows) => {
      await using device = (await onnxBackend.open({ threads: 1, extra: { binding } })) as OnnxDevice;
      using embed = await device.compile(body, weights);
      using draw = await device.compile(head, weights);
      let plans = 0;
      const make = device.binding.commands.bind(device.binding);
      device.binding.commands = () => {
        plans += 1;
        return make();
      };
      // As long as a device takes: the next step is there before this one is done.
      const execute = device.binding.execute.bind(device.binding);
      device.binding.execute = async (...args) => {
        await execute(...args);
        await later(4);
      };
      const first = Int32Array.from({ length: rows }, (_, row) => 4 * row);
      const begin = (past: number, last?: Drawn): Drawn => {
        const batch = {
          ids: last ? new Int32Array(rows) : first,
          rows: Array.from({ length: rows }, (_, slot) => ({ slot, past, count: 1 })),
        };
        const step = device.beginStep(batch, last && { ids: last.step.value('ids') });
        for (const layer of [embed, draw]) step.run(layer, {});
        step.draw!(batch.rows.map(() => ({ temperature: 0, uniform: 0 })));
        const submitted = step.submit();
        const ids = Promise.all([device.download(step.value('ids')), submitted]);
        return { step, ids };
      };
      let expected = [...first];
      let last = begin(0);
      for (let past = 1; past < 24; past++) {
        const next = begin(past, last);
        expected = expected.map(after);
        const [drawn] = await last.ids;
        expect([...drawn.data]).toEqual(expected);
        last.step[Symbol.dispose]();
        last = next;
      }
      await last.ids;
      last.step[Symbol.dispose]();
      // The first two steps, and those that take the place of plans whose ids came from elsewhere.
      expect(plans).toBeLessThanOrEqual(4);
      expect(device.memory().bytes).toBe(2 * 4 * vocabulary ** 2);
    });
  },
);
