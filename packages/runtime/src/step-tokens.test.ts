import type { Device, StepBatch } from '@dsla/spec';
import { expect, it } from 'vitest';
import { backends } from '../test/backends.js';
import { goldenModel } from '../test/files.js';
import { loadNetwork } from './load.js';
import { argmax } from './sample.js';

/** The device, telling of every batch. */
function counted(
  device: Device,
  tell: (batch: StepBatch) => void,
  capabilities: Device['capabilities'] = device.capabilities,
): Device {
  const beginStep: Device['beginStep'] = (batch, values) => {
    tell(batch);
    return device.beginStep(batch, values);
  };
  return new Proxy(device, {
    get(target, key) {
      if (key === 'capabilities') return capabilities;
      if (key === 'beginStep') return beginStep;
      const member = Reflect.get(target, key, target);
      return typeof member === 'function' ? member.bind(target) : member;
    },
  });
}

it('rows that are too many for a step go one after the other, single tokens together', async () => {
  const counts: number[][] = [];
  await using device = await backends[0]!.open();
  const counting = counted(device, ({ rows }) => counts.push(rows.map(({ count }) => count)));
  await using model = await loadNetwork(goldenModel('llama-gqa'), {
    device: counting,
    context: 32,
    slots: 5,
    stepTokens: 6,
  });
  const opened = [4, 3, 1, 9, 1].map((length) => ({ sequence: model.open(), ids: Array(length).fill(length) }));
  const together = await model.run(opened);
  expect(counts).toEqual([[4], [3, 1], [6, 1], [3]]);
  counts.length = 0;
  const fresh = opened.map(({ sequence, ids }) => {
    sequence[Symbol.dispose]();
    return { sequence: model.open(), ids };
  });
  using drawn = await model.draw(
    fresh,
    fresh.map(() => ({ temperature: 0, uniform: 0 })),
  );
  expect(counts).toEqual([[3, 2], [6], [2], [1, 1, 1, 1, 1]]);
  expect([...(await drawn.ids)]).toEqual(together.map(argmax));
});

it.each([
  ['as the device does best', 4, {}, [4, 4, 2]],
  ['as the caller says', 4, { stepTokens: 6 }, [6, 4]],
  ['hundreds at once where neither says', undefined, {}, [10]],
])('a prompt is cut %s', async (_, stepTokens, options, want) => {
  await using device = await backends[0]!.open();
  const counts: number[] = [];
  const capabilities = { ...device.capabilities, ...(stepTokens && { stepTokens }) };
  const counting = counted(device, ({ ids }) => counts.push(ids.length), capabilities);
  await using model = await loadNetwork(goldenModel('llama-gqa'), { device: counting, context: 16, ...options });
  using sequence = model.open();
  await model.run([{ sequence, ids: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] }]);
  expect(counts).toEqual(want);
});
