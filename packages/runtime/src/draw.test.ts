import { type Device, DslaError, type Step } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { backends } from '../test/backends.js';
import { embedded, goldenModel, vectorsOf } from '../test/files.js';
import { complete, generate } from './generate.js';
import { type LoadedModel, loadModel, loadNetwork } from './load.js';
import { argmax } from './sample.js';
import type { Sequence } from './slots.js';

/** The device with steps that are changed. */
function withSteps(device: Device, change: (step: Step) => void): Device {
  const beginStep: Device['beginStep'] = (...args) => {
    const step = device.beginStep(...args);
    change(step);
    return step;
  };
  return new Proxy(device, {
    get: (target, key) => {
      if (key === 'beginStep') return beginStep;
      const member = Reflect.get(target, key, target);
      return typeof member === 'function' ? member.bind(target) : member;
    },
  });
}

/** One that cannot draw. */
const mute = (device: Device): Device =>
  withSteps(device, (step) => {
    Object.defineProperty(step, 'draw', { value: undefined });
  });

const greedy = { temperature: 0, uniform: 0 };
const ids = [...vectorsOf('llama-gqa/vectors.safetensors').ids!.data];

describe.each([
  ['on the device', (device: Device) => device, true],
  ['on the host', mute, false],
])('tokens drawn %s', (_, change, onDevice) => {
  let device: Device;
  let model: LoadedModel;
  beforeAll(async () => {
    device = await backends[0]!.open();
    model = await loadNetwork(goldenModel('llama-gqa'), {
      device: change(device),
      slots: 3,
      context: 20,
      stepTokens: 5,
    });
  });
  afterAll(async () => {
    await model[Symbol.asyncDispose]();
    expect(device.memory()).toEqual({ buffers: 0, bytes: 0 });
    await device[Symbol.asyncDispose]();
  });

  /** Greedy tokens by logits. */
  async function wanted(prompt: readonly number[], count: number): Promise<number[]> {
    using sequence = model.open();
    const found: number[] = [];
    for (let next = prompt; found.length < count; next = found.slice(-1)) {
      const [logits] = await model.run([{ sequence, ids: next }]);
      found.push(argmax(logits!));
    }
    return found;
  }

  it('are those of the logits, for sequences of unlike lengths, before they are known', async () => {
    const prompts = [ids.slice(0, 13), ids.slice(3, 4), ids.slice(5, 10)];
    const opened = prompts.map(() => model.open());
    const draws = prompts.map(() => greedy);
    const first = await model.draw(
      prompts.map((prompt, index) => ({ sequence: opened[index]!, ids: prompt })),
      draws,
    );
    const second = await model.draw(first, draws);
    const third = await model.draw(second, draws);
    expect(third.onDevice).toBe(onDevice);
    expect(opened.map(({ past }) => past)).toEqual([15, 3, 7]);
    const got = await Promise.all([first, second, third].map(async (drawn) => [...(await drawn.ids)]));
    for (const drawn of [first, second, third]) drawn[Symbol.dispose]();
    for (const sequence of opened) sequence[Symbol.dispose]();
    for (const [index, prompt] of prompts.entries()) {
      expect(got.map((row) => row[index])).toEqual(await wanted(prompt, 3));
    }
  });

  it('need sequences as they were left, room, and draws in range', async () => {
    const sequence = model.open();
    using drawn = await model.draw([{ sequence, ids: ids.slice(0, 17) }], [greedy]);
    const refused = (rule: RegExp, code = 'E_INPUT') =>
      expect.objectContaining({ code, message: expect.stringMatching(rule) });
    await expect(model.draw(drawn, [])).rejects.toEqual(refused(/one draw a row/));
    await expect(model.draw(drawn, [{ temperature: -1, uniform: 0 }])).rejects.toEqual(refused(/range/));
    await model.run([{ sequence, ids: ids.slice(0, 1) }]);
    await expect(model.draw(drawn, [greedy])).rejects.toEqual(refused(/gone|nothing else/));
    using later = await model.draw([{ sequence, ids: ids.slice(0, 2) }], [greedy]);
    await expect(model.draw(later, [greedy])).rejects.toEqual(refused(/20 \+ 1/));
    sequence[Symbol.dispose]();
    await expect(model.draw(later, [greedy])).rejects.toEqual(refused(/open/, 'E_DISPOSED'));
    await expect(model.draw([], [])).rejects.toEqual(refused(/at least one sequence/));
  });

  it('stop at a signal before the step', async () => {
    using sequence = model.open();
    using drawn = await model.draw([{ sequence, ids: ids.slice(0, 3) }], [greedy]);
    await expect(model.draw(drawn, [greedy], AbortSignal.abort())).rejects.toMatchObject({ code: 'E_ABORTED' });
    expect(sequence.past).toBe(3);
  });
});

describe('a step that fails', () => {
  it.each(['submit', 'run'] as const)('in %s clears its sequences and keeps code and cause', async (when) => {
    const failure = new DslaError('E_MEMORY', { where: 'step', rule: 'no more' });
    let broken = false;
    await using device = await backends[0]!.open();
    const failing = withSteps(device, (step) => {
      const fail =
        when === 'submit'
          ? () => Promise.reject(failure)
          : () => {
              throw failure;
            };
      if (broken) Object.defineProperty(step, when, { value: fail });
    });
    await using model = await loadNetwork(goldenModel('llama-gqa'), { device: failing, context: 16 });
    using sequence: Sequence = model.open();
    using drawn = await model.draw([{ sequence, ids: [1, 2] }], [greedy]);
    await drawn.ids;
    broken = true;
    const later = model.draw(drawn, [greedy]).then(({ ids: next }) => next);
    await expect(later).rejects.toMatchObject({ code: 'E_MEMORY', cause: failure });
    expect(sequence.past).toBe(0);
  });

  it('says which row has logits that are not numbers', async () => {
    await using device = await backends[0]!.open();
    const none = withSteps(device, (step) => {
      step.draw = () => step.value('logits');
      const { value } = step;
      step.value = (name) =>
        name === 'ids'
          ? device.upload({ dtype: 'i32', shape: [1, 1], data: Int32Array.of(-1) })
          : value.call(step, name);
    });
    await using model = await loadNetwork(goldenModel('llama-gqa'), { device: none, context: 16 });
    using sequence = model.open();
    using drawn = await model.draw([{ sequence, ids: [1, 2] }], [greedy]);
    await expect(drawn.ids).rejects.toMatchObject({
      code: 'E_INTERNAL',
      message: expect.stringContaining('NaN in row 0'),
    });
  });
});

describe('text', () => {
  it('is the same, drawn on the device or on the host', async () => {
    await using device = await backends[0]!.open();
    await using there = await loadModel(embedded('llama-4m'), { device, context: 32 });
    await using here = await loadModel(embedded('llama-4m'), { device: mute(device), context: 32 });
    for (const options of [{}, { temperature: 1.2, topK: 30, topP: 0.9, seed: 5 }]) {
      const [a, b] = await Promise.all(
        [there, here].map((model) => complete(model, 'Call me', { ...options, maxTokens: 6 })),
      );
      expect(a).toMatchObject({ text: b!.text, ids: b!.ids });
    }
  });

  it('runs ahead of what was taken only on sequences of its own', async () => {
    await using device = await backends[0]!.open();
    await using model = await loadModel(embedded('llama-4m'), { device, context: 32 });
    using sequence = model.open();
    const stream = generate(model, [5, 6, 7], { sequence, maxTokens: 9 });
    await stream.next();
    expect(sequence.past).toBe(3);
    await stream.next();
    expect(sequence.past).toBe(4);
    await stream.return(undefined as never);
  });
});
