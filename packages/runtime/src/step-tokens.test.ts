import type { Device } from '@dsla/spec';
import { expect, it } from 'vitest';
import { backends } from '../test/backends.js';
import { goldenModel } from '../test/files.js';
import { loadNetwork } from './load.js';

it.each([
  ['as the device does best', 4, {}, [4, 4, 2]],
  ['as the caller says', 4, { stepTokens: 6 }, [6, 4]],
  ['hundreds at once where neither says', undefined, {}, [10]],
])('a prompt is cut %s', async (_, stepTokens, options, want) => {
  await using device = await backends[0]!.open();
  const counts: number[] = [];
  const counting: Device = new Proxy(device, {
    get(target, key) {
      if (key === 'capabilities') return { ...target.capabilities, ...(stepTokens && { stepTokens }) };
      const member = Reflect.get(target, key, target);
      if (key === 'beginStep') {
        return (...args: Parameters<Device['beginStep']>) => {
          counts.push(args[0].ids.length);
          return target.beginStep(...args);
        };
      }
      return typeof member === 'function' ? member.bind(target) : member;
    },
  });
  await using model = await loadNetwork(goldenModel('llama-gqa'), { device: counting, context: 16, ...options });
  using sequence = model.open();
  await model.run([{ sequence, ids: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] }]);
  expect(counts).toEqual(want);
});
