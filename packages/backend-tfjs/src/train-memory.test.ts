import {
  type DualForm,
  dualState,
  f32,
  isTrainingDevice,
  type LayerGraph,
  type Loss,
  type TrainingDevice,
} from '@dsla/spec';
import * as tf from '@tensorflow/tfjs-core';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { normals, sourceOf, type Tape, tape } from '../test/tapes.js';
import { tfjsBackend } from './index.js';

const width = 16;
const heads = 2;
const shape = { states: 2, kvHeads: heads, headDim: 8, temperature: 16, ropeInState: false };
const published: DualForm = { ...shape, gate: 'vector', normaliser: false };
const foldable: DualForm = {
  ...shape,
  gate: 'scalar',
  featureMap: { kind: 'exp', query: 'featureQ', key: 'featureK' },
  normaliser: true,
  exact: { window: 16, sinks: 2, logWeight: 'logWeight' },
};

/** A whole layer: x to q, k, v, gates, mechanism, y. */
function layerOf(form: DualForm): Tape {
  return tape((t) => {
    const x = t.push({ op: 'input', name: 'x', width });
    const linear = (name: string, from: number, out: number) =>
      t.push({ op: 'linear', x: from, weight: t.weight(name, [out, width]) });
    const [q, k, v] = [linear('q', x, width), linear('k', x, width), linear('v', x, width)] as const;
    const gates = linear('gates', x, 2 * heads * (form.gate === 'vector' ? 8 : 1));
    if (form.featureMap) for (const name of ['featureQ', 'featureK']) t.weight(name, [heads, 8, 8]);
    if (form.exact) t.weight('logWeight', [heads]);
    const [mix, state] = [t.weight('mix', [heads, 2]), t.state(dualState('dual', form, 8))];
    const o = t.push({ op: 'dualLinearAttention', q, k, v, gates, mix, state, heads, scale: 8 ** -0.5, form });
    return linear('o', o, width);
  });
}

function batchOf(tokens: number) {
  return { rows: 1, tokens, inputs: { x: f32([tokens, width], normals('x', tokens * width, 1)) } };
}

const mse = (tokens: number): Loss => ({
  kind: 'mse',
  output: 'y',
  target: f32([tokens, width], new Float32Array(tokens * width)),
});

describe.each(['wasm'])('memory of training on %s', (engine) => {
  let device: TrainingDevice;
  let before: number;
  beforeEach(async () => {
    const opened = await tfjsBackend.open({ extra: { engine } });
    if (!isTrainingDevice(opened)) throw new Error('must train');
    device = opened;
    before = tf.memory().numTensors;
  });
  afterEach(async () => {
    await device[Symbol.asyncDispose]();
    expect(tf.memory().numTensors).toBe(before);
  });

  describe.each([
    ['published', published],
    ['foldable', foldable],
  ])('%s form', (_, form) => {
    it('keeps the activations between forward and backward, nothing per step of time', async () => {
      const one = layerOf(form);
      using layer = await device.compileTrainable(one.graph, sourceOf(one), Object.keys(one.weights));
      const start = tf.memory();
      const held = async (tokens: number) => {
        let now = start;
        const batch = batchOf(tokens);
        await layer.gradients(batch, [
          {
            kind: 'host',
            outputs: ['y'],
            of: ({ y }) => {
              now = tf.memory();
              return { loss: 0, gradients: { y: y! } };
            },
          },
        ]);
        return { tensors: now.numTensors - start.numTensors, bytes: now.numBytes - start.numBytes };
      };
      const [short, long] = [await held(256), await held(1024)];
      expect(long.tensors).toBe(short.tensors);
      // x, q, k, v, gates, o and y: one vector a token each.
      const gates = 2 * heads * (form.gate === 'vector' ? 8 : 1);
      expect(short.bytes).toBe(256 * 4 * (6 * width + gates));
      expect(long.bytes).toBe(4 * short.bytes);
    });

    it('peaks in proportion to the tokens', async () => {
      const one = layerOf(form);
      using layer = await device.compileTrainable(one.graph, sourceOf(one), Object.keys(one.weights));
      const peak = async (tokens: number) => {
        const profile = await tf.profile(async () => {
          await layer.gradients(batchOf(tokens), [mse(tokens)]);
          return tf.scalar(0);
        });
        tf.dispose(profile.result as tf.TensorContainer);
        return profile.peakBytes;
      };
      const [short, long] = [await peak(256), await peak(1024)];
      expect(long).toBeLessThan(4.2 * short);
    });
  });

  it('steps, failed steps and dispose leave no tensor', async () => {
    const one = layerOf(foldable);
    const layer = await device.compileTrainable(one.graph, sourceOf(one), Object.keys(one.weights));
    const start = tf.memory().numTensors;
    const same = () => expect(tf.memory().numTensors).toBe(start);
    await layer.gradients(batchOf(70), [mse(70)]);
    same();
    const broken: Loss = {
      kind: 'host',
      outputs: ['y'],
      of: () => {
        throw new Error('callback');
      },
    };
    await expect(layer.gradients(batchOf(70), [mse(70), broken])).rejects.toThrow('callback');
    same();
    await expect(layer.gradients(batchOf(70), [mse(69)])).rejects.toThrow(
      /must be f32 \[70, 16\], got "f32 \[69, 16\]"/,
    );
    same();
    // A kernel that fails inside what is taped: max is used by the feature map.
    const kernel = tf.getKernel('Max', engine);
    tf.unregisterKernel('Max', engine);
    try {
      await expect(layer.gradients(batchOf(70), [mse(70)])).rejects.toMatchObject({
        code: 'E_DEVICE',
        message: expect.stringMatching(/test node \d+ \(dualLinearAttention\)/),
      });
    } finally {
      tf.registerKernel(kernel);
    }
    same();
    layer.forward(batchOf(70)).y![Symbol.dispose]();
    same();
    layer[Symbol.dispose]();
    await expect(layer.gradients(batchOf(70), [mse(70)])).rejects.toMatchObject({ code: 'E_DISPOSED' });
  });

  it('a kernel that fails in the backward pass leaves no tensor', async () => {
    const one = layerOf(foldable);
    using layer = await device.compileTrainable(one.graph, sourceOf(one), Object.keys(one.weights));
    const start = tf.memory().numTensors;
    const kernel = tf.getKernel('Sum', engine); // of the gradients alone
    const fail: Loss = {
      kind: 'host',
      outputs: ['y'],
      of: ({ y }) => {
        tf.unregisterKernel('Sum', engine);
        return { loss: 0, gradients: { y: y! } };
      },
    };
    try {
      await expect(layer.gradients(batchOf(70), [fail])).rejects.toMatchObject({ code: 'E_DEVICE' });
    } finally {
      tf.registerKernel(kernel);
    }
    expect(tf.memory().numTensors).toBe(start);
    const { loss } = await layer.gradients(batchOf(70), [mse(70)]); // and the device works on
    expect(loss).toBeGreaterThan(0);
  });
});

describe('losses and weights', () => {
  it('known losses are their definitions, terms add up by weight', async () => {
    await using device = (await tfjsBackend.open({ extra: { engine: 'wasm' } })) as TrainingDevice;
    const one = tape((t) => {
      const x = t.push({ op: 'input', name: 'x', width: 3 });
      return t.push({ op: 'linear', x, weight: t.weight('w', [5, 3]) });
    });
    using layer = await device.compileTrainable(one.graph, sourceOf(one), ['w']);
    const batch = { rows: 2, tokens: 2, inputs: { x: f32([4, 3], normals('x', 12, 1)) } };
    const goal = f32([4, 5], normals('goal', 20, 2));
    const softmax = (row: number[]) => {
      const all = row.reduce((sum, logit) => sum + Math.exp(logit), 0);
      return row.map((logit) => Math.exp(logit) / all);
    };
    const rowsOf = (data: ArrayLike<number>) => [0, 1, 2, 3].map((r) => [0, 1, 2, 3, 4].map((c) => data[r * 5 + c]!));
    let [mse, kl] = [0, 0];
    const byHand: Loss = {
      kind: 'host',
      outputs: ['y'],
      of: ({ y }) => {
        const gradient = new Float32Array(20);
        rowsOf(y!.data).forEach((row, r) => {
          const [p, q, target] = [softmax(rowsOf(goal.data)[r]!), softmax(row), rowsOf(goal.data)[r]!];
          row.forEach((value, c) => {
            mse += (value - target[c]!) ** 2 / 20;
            kl += (p[c]! * Math.log(p[c]! / q[c]!)) / 4;
            gradient[r * 5 + c] = (2 * (2 * (value - target[c]!))) / 20 + (3 * (q[c]! - p[c]!)) / 4;
          });
        });
        return { loss: 2 * mse + 3 * kl, gradients: { y: f32([4, 5], gradient) } };
      },
    };
    const want = await layer.gradients(batch, [byHand]);
    const got = await layer.gradients(batch, [
      { kind: 'mse', output: 'y', target: goal, weight: 2 },
      { kind: 'kl', output: 'y', teacher: goal, weight: 3 },
    ]);
    expect(got.terms[0]).toBeCloseTo(mse, 5);
    expect(got.terms[1]).toBeCloseTo(kl, 5);
    expect(got.loss).toBeCloseTo(want.loss, 4);
    got.byWeight.w!.data.forEach((value, i) => void expect(value).toBeCloseTo(want.byWeight.w!.data[i]!, 5));
  });

  it('assign is seen by every layer of the device, and a descent lowers the loss', async () => {
    await using device = (await tfjsBackend.open({ extra: { engine: 'wasm' } })) as TrainingDevice;
    const one = layerOf(foldable);
    using layer = await device.compileTrainable(one.graph, sourceOf(one), ['gates', 'mix', 'logWeight']);
    using serving = await device.compile(one.graph, sourceOf(one));
    using store = device.createState(one.graph.states[0]!, 1, 70);
    using x = device.upload(batchOf(70).inputs.x);
    const served = async () => {
      using step = device.beginStep({ ids: new Int32Array(70), rows: [{ slot: 0, past: 0, count: 70 }] }, { x });
      store.clear(0);
      step.run(serving, { dual: store });
      await step.submit();
      return (await device.download(step.value('y'))).data as Float32Array;
    };
    const loss = (data: Float32Array) => data.reduce((sum, y) => sum + y * y, 0) / data.length;
    const losses = [loss(await served())];
    for (let turn = 0; turn < 3; turn++) {
      const { byWeight } = await layer.gradients(batchOf(70), [mse(70)]);
      const moved = Object.entries(byWeight).map(async ([name, { shape, data }]) => {
        const { data: old } = await layer.read(name);
        return [
          name,
          f32(
            shape,
            (old as Float32Array).map((w, i) => w - 0.5 * data[i]!),
          ),
        ] as const;
      });
      layer.assign(Object.fromEntries(await Promise.all(moved)));
      losses.push(loss(await served()));
    }
    expect(losses).toEqual([...losses].sort((a, b) => b - a));
    expect(losses.at(-1)).toBeLessThan(losses[0]!);
  });

  it('refuses what does not fit, with the rule', async () => {
    await using device = (await tfjsBackend.open({ extra: { engine: 'wasm' } })) as TrainingDevice;
    const one = layerOf(published);
    const source = sourceOf(one);
    await expect(device.compileTrainable(one.graph, source, ['other'])).rejects.toThrow(
      /must be one of the tape, got "other"/,
    );
    const fold: LayerGraph = {
      name: 'fold',
      states: [{ name: 'kv', kind: 'kv', parts: [] }, dualState('dual', published)],
      nodes: [{ op: 'foldState', from: 'kv', to: 'dual', gateSource: 'value', gateWeight: 'g', form: published }],
    };
    const gates = { ...one, weights: { g: { shape: [32, 16], data: new Float32Array(512) } } };
    await expect(device.compileTrainable(fold, sourceOf(gates), [])).rejects.toMatchObject({ code: 'E_UNSUPPORTED' });
    using layer = await device.compileTrainable(one.graph, source, ['q']);
    expect(() => layer.assign({ k: f32([16, 16], new Float32Array(256)) })).toThrow(/must be a trainable weight: q/);
    expect(() => layer.assign({ q: f32([8, 16], new Float32Array(128)) })).toThrow(/must be f32 \[16, 16\]/);
    expect(() => layer.forward({ rows: 1, tokens: 4 })).toThrow(/input x: must be given/);
    expect(() => layer.forward({ rows: 0, tokens: 4 })).toThrow(/rows must be an integer of at least 1, got 0/);
    await expect(layer.gradients(batchOf(4), [])).rejects.toThrow(/must be a loss/);
    const stranger: Loss = { kind: 'mse', output: 'z', target: f32([4, 16], new Float32Array(64)) };
    await expect(layer.gradients(batchOf(4), [stranger])).rejects.toThrow(/must be of an output: y, got "z"/);
  });
});
