import { join } from 'node:path';
import { referenceBackend } from '@dsla/reference';
import type { Device } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { goldenModel } from '../test/files.js';
import { golden, randomConversion, temporaryFolder } from '../test/models.js';
import { type LoadOptions, loadModel, loadNetwork } from './load.js';

let device: Device;
beforeAll(async () => {
  device = await referenceBackend.open();
});
afterAll(async () => {
  expect(device.memory()).toEqual({ buffers: 0, bytes: 0 }); // of all loads here, good and bad
  await device[Symbol.asyncDispose]();
});
const refused = (code: string, ...words: string[]) => ({
  code,
  message: expect.stringMatching(words.join('.*')),
});
const foldable = { foldable: { kind: 'dual', window: 2, sinks: 1 } } as const;

describe('loading', () => {
  it('reads the end tokens and the recommended sampling', async () => {
    const generation = { eos_token_id: [2, 5], do_sample: true, temperature: 0.6, top_p: 0.9, top_k: 0 };
    await using folder = await golden('llama-base', { 'generation_config.json': generation });
    await using model = await loadModel(folder.path, { device });
    expect(model.eos).toEqual([2, 5]);
    expect(model.sampling).toEqual({ temperature: 0.6, topP: 0.9 });
    expect(model.untuned).toEqual([]);
  });

  it('takes the end token from config.json, else from the tokenizer', async () => {
    await using folder = await golden('llama-base');
    await using model = await loadModel(folder.path, { device });
    expect(model.eos).toEqual([2]);
    expect(model.sampling).toEqual({});
    await using other = await golden('llama-base', {
      'generation_config.json': { do_sample: false, temperature: 0.6 },
    });
    await using greedy = await loadModel(other.path, { device });
    expect(greedy.sampling).toEqual({});
  });

  it('counts what it compiles', async () => {
    const seen: [number, number][] = [];
    await using model = await loadNetwork(goldenModel('llama-base'), {
      device,
      onProgress: (done, total) => seen.push([done, total]),
    });
    const { segments } = model.description;
    expect(seen.at(-1)).toEqual([segments.length + 2, segments.length + 2]);
    expect(seen.map(([done]) => done)).toEqual(seen.map((_, index) => index + 1));
  });

  it('starts mixers untuned, and from a conversion where there is one', async () => {
    const name = 'llama-gqa';
    const ids = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9];
    const plan = ['foldable', 'foldable'];
    await using conversion = await randomConversion(name, foldable, 1);
    const logits: Float32Array[] = [];
    const untuned: number[] = [];
    for (const path of [undefined, conversion.path, join(conversion.path, 'model.safetensors')]) {
      const options = { device, mixers: foldable, plan, conversion: path };
      await using model = await loadNetwork(goldenModel(name), options);
      using sequence = model.open();
      logits.push(...(await model.run([{ sequence, ids }])));
      untuned.push(model.untuned.length);
    }
    expect(untuned[0]).toBeGreaterThan(0);
    expect(untuned.slice(1)).toEqual([0, 0]);
    expect(logits[0]).not.toEqual(logits[1]);
    expect(logits[2]).toEqual(logits[1]);
  });
});

describe('a bad folder', () => {
  const load = async (files: Readonly<Record<string, unknown>>, options: Partial<LoadOptions> = {}) => {
    await using folder = await golden('llama-base', files);
    await using _ = await loadModel(folder.path, { device, ...options });
  };

  it('is refused when a file is missing', async () => {
    await expect(loadModel(goldenModel('llama-base'), { device })).rejects.toMatchObject(
      refused('E_IO', 'tokenizer.json', 'save_pretrained'),
    );
    await using empty = await temporaryFolder();
    await expect(loadModel(empty.path, { device })).rejects.toMatchObject(
      refused('E_IO', 'config.json', 'Hugging Face'),
    );
  });

  it.each(['config.json', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json'])(
    'is refused when %s is no JSON',
    async (file) => {
      await expect(load({ [file]: '{"a":' })).rejects.toMatchObject(refused('E_FORMAT', file, 'JSON', 'Download'));
    },
  );

  it('is refused when the tokenizer is broken', async () => {
    await expect(load({ 'tokenizer.json': { model: {} } })).rejects.toMatchObject(
      refused('E_FORMAT', 'tokenizer.json', 'model.vocab', 'model.merges'),
    );
  });

  it('is refused when generation_config.json is not what it should be', async () => {
    await expect(load({ 'generation_config.json': { eos_token_id: 'x', top_p: 'y' } })).rejects.toMatchObject(
      refused('E_FORMAT', 'generation_config.json', 'eos_token_id', 'top_p'),
    );
  });

  it('is refused when the architecture is unknown, with the known ones', async () => {
    await expect(load({ 'config.json': { model_type: 'gpt2' } })).rejects.toMatchObject(
      refused('E_UNSUPPORTED', 'llama', 'zamba', 'gpt2'),
    );
  });

  it('is refused when the weights are damaged', async () => {
    await expect(load({ 'model.safetensors': 'short' })).rejects.toMatchObject(
      refused('E_FORMAT', 'model.safetensors'),
    );
  });
});

describe('bad options', () => {
  const load = async (options: Partial<LoadOptions>) => {
    await using _ = await loadNetwork(goldenModel('llama-base'), { device, ...options });
  };

  it.each([
    ['slots', { slots: 0 }],
    ['context', { context: 1.5 }],
    ['stepTokens', { stepTokens: -1 }],
  ])('are refused: %s', async (name, options) => {
    await expect(load(options)).rejects.toMatchObject(refused('E_INPUT', name));
  });

  it('are refused: a plan of the wrong length', async () => {
    await expect(load({ plan: ['default'] })).rejects.toMatchObject(refused('E_INPUT', '2 convertible layers'));
  });

  it('are refused: a plan with an unknown mixer', async () => {
    await expect(load({ mixers: foldable, plan: ['default', 'magic'] })).rejects.toMatchObject(
      refused('E_INPUT', 'default, foldable', 'magic'),
    );
  });

  it('are refused: a conversion that is not there', async () => {
    await expect(load({ mixers: foldable, conversion: '/nowhere' })).rejects.toMatchObject(refused('E_IO', '/nowhere'));
  });

  it('are refused: what the device cannot run, every reason at once', async () => {
    const narrow: Device = Object.create(device, {
      unsupported: { value: (graph: { name: string }) => [`${graph.name} is too much`] },
    });
    await expect(load({ device: narrow })).rejects.toMatchObject(refused('E_UNSUPPORTED', 'embed is', 'headAll is'));
  });

  it('are refused: an abort, before and in the middle', async () => {
    await expect(load({ signal: AbortSignal.abort() })).rejects.toMatchObject(refused('E_ABORTED'));
    const abort = new AbortController();
    const onProgress = (done: number) => done === 3 && abort.abort();
    await expect(load({ signal: abort.signal, onProgress })).rejects.toMatchObject(refused('E_ABORTED'));
  });
});
