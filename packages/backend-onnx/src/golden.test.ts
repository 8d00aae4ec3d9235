import { setTimeout as sleep } from 'node:timers/promises';
import { bindWeights, describe, tapesOf } from '@dsla/models';
import { type Device, joinGraphs } from '@dsla/spec';
import { afterAll, beforeAll, expect, describe as group, it } from 'vitest';
import { distance, missing, openGolden } from '../../models/test/golden.js';
import { onnxBackend } from './index.js';

// Whole models against transformers in float32 (packages/conformance/golden/README.md), as one tape: the prompt runs stage by
// stage, every further token in one session.

const names = ['llama-base', 'llama-gqa', 'llama3-rope', 'llama-tied', 'llama-sharded-bf16', 'zamba-a', 'zamba-b'];
const prompt = 13;
const tokens = 18;

group.skipIf(missing)('golden models', () => {
  let device: Device;
  beforeAll(async () => {
    device = await onnxBackend.open({ threads: 2 });
  });
  afterAll(async () => {
    await device[Symbol.asyncDispose]();
  });

  it.each(names)('%s: prompt, then token by token, then the states', async (name) => {
    await using golden = await openGolden(name);
    const description = describe(golden.config);
    const weights = bindWeights(description, golden.checkpoint);
    const graphs = [...description.segments.map(({ versions }) => versions.default), description.headAll];
    using layer = await device.compile(joinGraphs(graphs, new Set(['logits'])), weights);
    const specs = tapesOf(description).flatMap(({ states }) => states);
    const states = Object.fromEntries(specs.map((spec) => [spec.name, device.createState(spec, 1, tokens)]));
    const ids = await golden.ids();
    const feed = async (past: number, count: number): Promise<Float32Array> => {
      using step = device.beginStep({ ids: ids.subarray(past, past + count), rows: [{ slot: 0, past, count }] });
      step.run(layer, states);
      await step.submit();
      return (await device.download(step.value('logits'))).data as Float32Array;
    };

    expect(distance(await feed(0, prompt), await golden.floats('prefill.logits'))).toBeLessThan(1e-4);
    for (let past = prompt; past < tokens; past++) {
      if (past === tokens - 1) await sleep(20); // longer than the computing thread stays awake
      expect(distance(await feed(past, 1), await golden.floats(`decode.${past - prompt}.logits`))).toBeLessThan(1e-4);
    }

    const parts = { k: ['kv', 0], v: ['kv', 1], conv: ['conv', 0], scan: ['scan', 0] } as const;
    const kept = [...golden.vectors.tensors.keys()].map((key) => [key, ...key.split('.')] as const);
    const compared = kept.filter(([, kind, index]) => kind !== undefined && kind in parts && index !== undefined);
    expect(compared.length).toBeGreaterThan(0);
    for (const [key, kind, index] of compared) {
      const [state, part] = parts[kind as keyof typeof parts];
      const { data } = (await states[`layers.${index}.${state}`]!.export(0))[part]!;
      const want = await golden.floats(key);
      const size = want.reduce((most, x) => Math.max(most, Math.abs(x)), 1);
      expect(distance(data as Float32Array, want) / size, key).toBeLessThan(1e-4);
    }
    for (const store of Object.values(states)) store[Symbol.dispose]();
  });
});
