import type { Device } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { backends } from '../test/backends.js';
import { embedded, shared, vectorsOf } from '../test/files.js';
import { complete, type Generated, generate, type Usage } from './generate.js';
import { loadModel, type TextModel } from './load.js';

// transformers' greedy continuation of 64 tokens; see tools/pretrain/finish.py.
describe.each(backends.map((backend) => [backend.name, backend] as const))('greedy text on %s', (_, backend) => {
  it.each(['llama-4m', 'zamba-4m'] as const)('%s continues as transformers does', async (name) => {
    await using device = await backend.open();
    await using model = await loadModel(embedded(name), { device, context: 128 });
    const { ids, greedy, logits } = vectorsOf(`${name}.vectors.safetensors`);
    const result = await complete(model, [...ids!.data], { maxTokens: 24, eos: [] });
    expect(result.ids).toEqual([...greedy!.data]);
    expect(result.usage).toMatchObject({ promptTokens: 64, generatedTokens: 24, finish: 'length' });
    expect(logits!.shape).toEqual([4, model.description.vocabulary]);
  });
});

describe('tinystories-656k', () => {
  const folders = [shared('models/tinystories-656k'), shared('models/tinystories-656k-bf16')];
  it('gives the same greedy text in bf16 as in f32', async ({ skip }) => {
    skip(folders.includes(undefined), 'models/tinystories-656k(-bf16) is not in ../shared');
    await using device = await backends[1]!.open();
    const texts: string[] = [];
    for (const folder of folders) {
      await using model = await loadModel(folder!, { device });
      const prompts = ['Once upon a time', 'Tom and his dog', 'The little bird'];
      for (const prompt of prompts) texts.push((await complete(model, prompt, { maxTokens: 50 })).text);
    }
    expect(texts.slice(3)).toEqual(texts.slice(0, 3));
  });
});

describe('generate', () => {
  let device: Device;
  let model: TextModel;
  const prompt = 'It was a dark and';
  beforeAll(async () => {
    device = await backends[1]!.open();
    model = await loadModel(embedded('llama-4m'), { device, context: 64, slots: 2 });
  });
  afterAll(async () => {
    await model[Symbol.asyncDispose]();
    await device[Symbol.asyncDispose]();
  });
  const collect = async (stream: AsyncGenerator<Generated, Usage, void>) => {
    const chunks: Generated[] = [];
    for (;;) {
      const { done, value } = await stream.next();
      if (done) return { chunks, usage: value };
      chunks.push(value);
    }
  };
  const slotsFree = (): number => {
    const open = [];
    try {
      for (;;) open.push(model.open());
    } catch {
      for (const sequence of open) sequence[Symbol.dispose]();
      return open.length;
    }
  };

  it('streams one token a chunk; prompt and pieces are the text of all ids', async () => {
    const { chunks, usage } = await collect(generate(model, prompt, { maxTokens: 20 }));
    const ids = chunks.flatMap((chunk) => chunk.ids);
    expect(chunks.every((chunk) => chunk.ids.length === 1)).toBe(true);
    const { encode, decode } = model.tokenizer;
    expect(prompt + chunks.map(({ text }) => text).join('')).toBe(decode([...encode(prompt), ...ids]));
    expect(usage).toMatchObject({ generatedTokens: 20, finish: 'length' });
  });

  it('draws the same text from the same seed', async () => {
    const options = { temperature: 1.5, topK: 50, topP: 0.95, repetitionPenalty: 1.1, maxTokens: 12 };
    const texts = [];
    for (const seed of [1, 1, 2]) texts.push((await complete(model, prompt, { ...options, seed })).text);
    expect(texts[0]).toBe(texts[1]);
    expect(texts[0]).not.toBe(texts[2]);
  });

  it('ends before a stop string, wherever it lies', async () => {
    const { text } = await complete(model, prompt, { maxTokens: 20 });
    const stop = text.slice(9, 15);
    const stopped = await complete(model, prompt, { maxTokens: 20, stop: ['nowhere in it', stop] });
    expect(stopped.text).toBe(text.slice(0, text.indexOf(stop)));
    expect(stopped.usage.finish).toBe('stop');
    expect(stopped.usage.generatedTokens).toBeLessThan(20);
  });

  it('gives out what was held back for a stop string that did not come', async () => {
    const { text } = await complete(model, prompt, { maxTokens: 20 });
    const held = await complete(model, prompt, { maxTokens: 20, stop: [`${text.slice(-3)}!!`] });
    expect(held).toMatchObject({ text, usage: { finish: 'length' } });
  });

  it('ends at an end token, which is no part of the text', async () => {
    const { ids } = await complete(model, prompt, { maxTokens: 20 });
    const last = ids.findIndex((id, index) => index > 4 && !ids.slice(0, index).includes(id));
    const ended = await complete(model, prompt, { maxTokens: 20, eos: [ids[last]!] });
    expect(ended.ids).toEqual(ids.slice(0, last));
    expect(ended.usage).toMatchObject({ finish: 'eos', generatedTokens: last });
  });

  it('ends when the context is full: the last token needs no place', async () => {
    const { ids, usage } = await complete(model, prompt, { eos: [] });
    expect(usage.finish).toBe('context');
    expect(usage.promptTokens + ids.length).toBe(model.context + 1);
  });

  it('starts from the begin token alone when asked to', async () => {
    const { usage } = await complete(model, [model.tokenizer.bos!], { maxTokens: 3 });
    expect(usage.promptTokens).toBe(1);
  });

  it('continues a sequence of the caller, which stays open', async () => {
    using sequence = model.open();
    const first = await complete(model, prompt, { maxTokens: 6, sequence });
    const second = await complete(model, [first.ids.at(-1)!], { maxTokens: 6, sequence });
    const whole = await complete(model, prompt, { maxTokens: 12 });
    expect([...first.ids, ...second.ids]).toEqual(whole.ids);
    const added = sequence.past;
    await complete(model, 'night', { maxTokens: 1, sequence });
    expect(sequence.past - added).toBe(model.tokenizer.encode('night', { bos: false }).length);
  });

  it('returns its slot however it ends', async () => {
    expect(slotsFree()).toBe(2);
    for await (const _ of generate(model, prompt)) break;
    expect(slotsFree()).toBe(2);
    const abort = new AbortController();
    const stream = generate(model, prompt, { signal: abort.signal });
    await stream.next();
    abort.abort();
    await expect(stream.next()).rejects.toMatchObject({ code: 'E_ABORTED' });
    expect(slotsFree()).toBe(2);
    expect(Object.values(model.states).every(({ bytes }) => bytes === 0)).toBe(true);
  });

  it.each(['', []])('refuses an empty prompt and says how to begin with nothing: %j', async (empty) => {
    await expect(complete(model, empty)).rejects.toMatchObject({
      code: 'E_INPUT',
      message: expect.stringContaining('[1] to begin with nothing'),
    });
    expect(slotsFree()).toBe(2);
  });

  it('refuses a prompt longer than the context with both numbers', async () => {
    const ids = Array<number>(65).fill(300);
    await expect(complete(model, ids)).rejects.toMatchObject({
      code: 'E_INPUT',
      message: expect.stringMatching(/64.*65/),
    });
    expect(slotsFree()).toBe(2);
  });

  it('names every bad option in one error', async () => {
    const bad = { temperature: -1, topP: 0, maxTokens: 0, stop: [''], eos: [-1], temprature: 1 };
    await expect(complete(model, prompt, bad)).rejects.toMatchObject({
      code: 'E_INPUT',
      message: expect.stringMatching(/temperature.*topP.*maxTokens.*stop\.0.*eos\.0.*temprature/),
    });
  });

  it('stops before anything runs when it is already aborted', async () => {
    await expect(complete(model, prompt, { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'E_ABORTED' });
  });
});
