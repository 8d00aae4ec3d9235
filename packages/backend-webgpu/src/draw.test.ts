import { referenceBackend } from '@dsla/reference';
import { type Draw, f32, fromFloat16, type LayerGraph, toFloat16, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { loadGpu, must } from './adapter.js';
import { openDevice } from './device.js';
import { openRunner } from './kernel-runner.js';
import { drawTokens } from './kernels/draw.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

const vocabulary = 1203; // odd: rows of halves begin inside a word

const head: LayerGraph = {
  name: 'head',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width: vocabulary },
    { op: 'lastToken', x: 0 },
    { op: 'output', name: 'logits', x: 1 },
  ],
};

/** Logits in the compute type: those of `head` are float32. */
const squared: LayerGraph = {
  name: 'head of squares',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width: vocabulary },
    { op: 'lastToken', x: 0 },
    { op: 'mul', a: 1, b: 1 },
    { op: 'output', name: 'logits', x: 2 },
  ],
};

const noWeights: WeightSource = {
  spec: (name) => {
    throw new Error(name);
  },
  read: async (name) => {
    throw new Error(name);
  },
};

const draws: readonly Draw[] = [
  { temperature: 0, uniform: 0.5 },
  { temperature: 1, uniform: 0.13 },
  { temperature: 0.5, topK: 9, uniform: 0.62 },
  { temperature: 2, topP: 0.3, uniform: 0.4 },
  { temperature: 1, topK: 40, topP: 0.8, uniform: 0.97 },
];

/** Logits as halves, and what they stand for; a few are much larger, so that no draw falls near a border of two tokens. */
const bits = toFloat16(
  Float32Array.from({ length: draws.length * vocabulary }, (_, i) => Math.sin(12.9898 * i) + (i % 97 === 5 ? 6 : 0)),
);
const logits = fromFloat16(bits);
const batch = { ids: new Int32Array(draws.length), rows: draws.map((_, slot) => ({ slot, past: 0, count: 1 })) };

async function wanted(): Promise<number[]> {
  await using reference = await referenceBackend.open();
  using layer = await reference.compile(head, noWeights);
  using x = reference.upload(f32([draws.length, vocabulary], logits.slice()));
  using step = reference.beginStep(batch, { x });
  step.run(layer, {});
  step.draw!(draws);
  await step.submit();
  return [...(await reference.download(step.value('ids'))).data];
}

describe.skipIf(obstacle)(`drawing${obstacle ? ` (${obstacle})` : ''}`, () => {
  it.each(['f32', 'f16'] as const)('reads logits in %s', async (type) => {
    const runner = await openRunner(batch.rows);
    const words =
      type === 'f32'
        ? logits.slice()
        : new Uint32Array(Uint16Array.from([...bits, 0]).buffer, 0, (bits.length + 1) / 2);
    const given = Float32Array.from(
      draws.flatMap(({ temperature, topK = 2 ** 31, topP = 1, uniform }) => [temperature, topK, topP, uniform]),
    );
    const ids = runner.buffer(new Uint32Array(draws.length));
    const kernel = drawTokens({ width: vocabulary, type }, 256);
    await runner.run(kernel, [runner.buffer(words), runner.buffer(given), ids], [draws.length, 1, 1]);
    expect([...new Int32Array(await runner.read(ids)).subarray(0, draws.length)]).toEqual(await wanted());
  });
});

describe('the kernel that draws', () => {
  it.each([
    ['f32', 'array<f32>'],
    ['f16', 'array<u32>'],
  ] as const)('takes logits as a device has them that computes in %s', async (type, words) => {
    // Dawn's null backend has float16 and runs nothing: what the kernel takes its logits for stands in its text.
    const gpu = must(await loadGpu({ extra: { backend: 'null' } }));
    const adapter = (await gpu.requestAdapter())!;
    const request = adapter.requestDevice.bind(adapter);
    const kernels: string[] = [];
    adapter.requestDevice = async (wanted) => {
      const device = await request(wanted);
      const create = device.createShaderModule.bind(device);
      device.createShaderModule = (descriptor) => {
        if (descriptor.label === 'draw-tokens') kernels.push(descriptor.code);
        return create(descriptor);
      };
      return device;
    };
    await using device = await openDevice(adapter, { computeType: type });
    using layer = await device.compile(squared, noWeights);
    using x = device.upload(f32([draws.length, vocabulary], logits.slice()));
    using step = device.beginStep(batch, { x });
    step.run(layer, {});
    step.draw!(draws);
    expect(step.value('logits').dtype).toBe(type);
    expect(kernels).toEqual([expect.stringContaining(`logits: ${words};`)]);
  });
});
