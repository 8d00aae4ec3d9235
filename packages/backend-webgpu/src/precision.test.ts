import { describe as describeModel, parseConfig, shapes, tapesOf } from '@dsla/models';
import { f32, fromFloat16, type LayerGraph, toFloat16, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { loadGpu, must } from './adapter.js';
import type { Traits } from './builder.js';
import { openDevice } from './device.js';
import { openRunner } from './kernel-runner.js';
import { linearVector } from './kernels/linear-vector.js';
import { rmsNorm } from './kernels/norm.js';
import { lower } from './lower.js';
import { preciseNodes } from './precision.js';
import { useSwiftShader } from './swiftshader.js';
import type { View } from './view.js';

/** The ops whose results are float32, in order. */
function preciseOps(graph: LayerGraph): string[] {
  const precise = preciseNodes(graph);
  return graph.nodes.filter((node) => precise.has(node)).map(({ op }) => op);
}

describe('float32 results', () => {
  it.each([
    [
      'llama2-7b',
      {
        embed: 'embed',
        project: 'input linear linear',
        attention: 'input input',
        output: 'input add add',
        head: 'input lastToken linear',
      },
    ],
    [
      'zamba-7b',
      {
        embed: 'embed',
        'layers.1': 'input add',
        'layers.2': 'input input concat linear linear add add',
        head: 'input lastToken linear',
      },
    ],
  ] as const)('of %s are the residual stream, queries, keys and the logits', (name, expected) => {
    const tapes = tapesOf(describeModel(parseConfig({ ...shapes[name], num_hidden_layers: 3 })));
    for (const [ending, ops] of Object.entries(expected)) {
      const tape = tapes.find((one) => one.name.endsWith(ending))!;
      expect(preciseOps(tape).join(' '), ending).toBe(ops);
    }
  });

  it('are none that a product or an attention reads', () => {
    const graph: LayerGraph = {
      name: 'a sum that is multiplied',
      states: [],
      nodes: [
        { op: 'input', name: 'x', width: 8 },
        { op: 'input', name: 'y', width: 8 },
        { op: 'add', a: 0, b: 1 },
        { op: 'linear', x: 2, weight: 'w' },
        { op: 'output', name: 'x', x: 3 },
        { op: 'mul', a: 1, b: 2 },
        { op: 'output', name: 'y', x: 5 },
        { op: 'add', a: 0, b: 3 },
        { op: 'linear', x: 7, weight: 'w' },
        { op: 'output', name: 'logits', x: 8 },
      ],
    };
    expect(preciseOps(graph)).toEqual(['input', 'linear']); // x, which is added, and the logits
  });
});

describe('results of many tokens', () => {
  const model = describeModel(parseConfig({ ...shapes['llama2-7b'], num_hidden_layers: 1 }));
  const traits: Traits = { type: 'f16', lanes: 32, matrices: true };
  /** What is dispatched for so many tokens of one row, or of as many rows. */
  const busy = (graph: LayerGraph, tokens: number, rows = 1): string[] => {
    const view = { tokens, rows, tiles: 1, singles: 0 } as View;
    const { ops } = lower(graph, (name) => model.weights[name]!.shape, traits);
    return ops.filter(({ grid }) => !grid(view).includes(0)).map(({ kernel }) => kernel.name);
  };

  it('are joined in float32 where they are gated', () => {
    const output = model.segments.at(-1)!.versions.default;
    expect(busy(output, 65)).toEqual(['linear-matrix', 'rms-norm', 'linear-matrix-gated', 'linear-matrix']);
    expect(busy(output, 64)).toEqual(['linear-thin-64', 'rms-norm', 'linear-thin-64-gated', 'linear-thin-64']);
  });

  it('are no more than products where they are queries and keys', () => {
    const project = model.segments.find(({ versions }) => versions.default.name.endsWith('project'))!.versions.default;
    expect(busy(project, 65)).toEqual(['rms-norm', 'linear-matrix', 'linear-matrix', 'linear-matrix']);
  });

  it('have what float16 leaves of the norm added where they are logits, but for those of last tokens', () => {
    const apart = ['rms-norm', 'linear-matrix'];
    expect(busy(model.headAll, 65)).toEqual([...apart, 'rms-norm-rest', 'linear-matrix']);
    expect(busy(model.headAll, 64)).toEqual(['rms-norm', 'linear-thin-64']);
    expect(busy(model.head, 65)).toEqual(['linear-vector-1-normed']);
    expect(busy(model.head, 65, 65)).toEqual(['lastToken', ...apart]);
  });
});

describe('a value of a step', () => {
  it('has the type in which a layer last read or wrote it', async () => {
    // Dawn's null backend has float16 and runs nothing.
    const gpu = must(await loadGpu({ extra: { backend: 'null' } }));
    await using device = await openDevice((await gpu.requestAdapter())!, { computeType: 'f16' });
    const width = 64;
    const tape = (nodes: LayerGraph['nodes']): LayerGraph => ({ name: 'layer', states: [], nodes });
    const source: WeightSource = {
      spec: () => ({ storage: 'f16', shape: [width, width] }),
      read: async () => ({ dtype: 'f16', shape: [width, width], data: new Uint16Array(width * width) }),
    };
    const input = { op: 'input', name: 'x', width } as const;
    const added = tape([input, { op: 'add', a: 0, b: 0 }, { op: 'output', name: 'x', x: 1 }]);
    const multiplied = tape([input, { op: 'linear', x: 0, weight: 'w' }, { op: 'output', name: 'x', x: 1 }]);
    const read = tape([input, { op: 'linear', x: 0, weight: 'w' }, { op: 'output', name: 'y', x: 1 }]);
    const batch = { ids: Int32Array.of(1, 2), rows: [{ slot: 0, past: 0, count: 2 }] };
    using x = device.upload(f32([2, width], new Float32Array(2 * width)));
    using step = device.beginStep(batch, { x });
    const types = [step.value('x').dtype];
    for (const graph of [added, read, added, multiplied, added]) {
      using layer = await device.compile(graph, source);
      step.run(layer, {}, [0]);
      types.push(step.value('x').dtype);
    }
    expect(types).toEqual(['f32', 'f32', 'f16', 'f32', 'f16', 'f32']);
    await step.submit();
  });
});

const obstacle = useSwiftShader();

describe.skipIf(obstacle)(`products of a float32 stream${obstacle ? ` (${obstacle})` : ''}`, () => {
  const [width, outputs, count, eps] = [328, 72, 3, 1e-5];
  const wave = (length: number, seed: number) =>
    Float32Array.from({ length }, (_, i) => Math.sin(seed + 12.9898 * i) * Math.cos(0.37 * i * seed));

  it('less their norms, rounded', async () => {
    const runner = await openRunner([{ slot: 0, past: 0, count }]);
    const [x, norm] = [wave(count * width, 1), wave(width, 2)];
    const exact = x.map((a, i) => {
      const own = x.subarray(i - (i % width), i - (i % width) + width);
      const scale = 1 / Math.sqrt(own.reduce((sum, b) => sum + b * b, 0) / width + eps);
      return a * norm[i % width]! * scale;
    });
    const rounded = fromFloat16(toFloat16(exact)).slice();
    const shape = { width, type: 'f32' } as const;
    const kernel = rmsNorm('token', shape, shape, eps, { rest: shape });
    const y = runner.buffer(new Float32Array(count * width));
    await runner.run(kernel, [...[x, norm, rounded].map(runner.buffer), y], [count, 1, 1]);
    const got = new Float32Array(await runner.read(y));
    exact.forEach((value, i) => void expect(rounded[i]! + got[i]!, `${i}`).toBeCloseTo(value, 6));
    expect(got.some((value) => Math.abs(value) > 1e-4)).toBe(true);
  });

  it.each([1, 2])('and matrices in float16, normed, %i items at a time', async (items) => {
    const runner = await openRunner([{ slot: 0, past: 0, count }]);
    const [x, norm, z] = [wave(count * width, 1), wave(width, 2), wave(count * outputs, 3)];
    const halves = toFloat16(wave(outputs * width, 4));
    const w = fromFloat16(halves);
    const full = (width: number) => ({ width, type: 'f32' }) as const;
    const kernel = linearVector({
      domain: 'token',
      x: full(width),
      format: 'f16',
      parts: [{ y: full(outputs), bias: false, add: full(outputs) }],
      shape: { size: 32, items, rows: 8, ahead: 4, lanes: 4, places: 1 },
      eps,
    });
    const y = runner.buffer(new Float32Array(count * outputs));
    const buffers = [x, norm, new Uint32Array(halves.slice().buffer), z].map(runner.buffer);
    await runner.run(kernel, [...buffers, y], [outputs / 8, Math.ceil(count / items), 1]);
    const got = new Float32Array(await runner.read(y));
    for (let t = 0; t < count; t++) {
      const own = x.subarray(t * width, (t + 1) * width);
      const scale = 1 / Math.sqrt(own.reduce((sum, a) => sum + a * a, 0) / width + eps);
      for (let o = 0; o < outputs; o++) {
        let sum = z[t * outputs + o]!;
        for (let k = 0; k < width; k++) sum += own[k]! * norm[k]! * scale * w[o * width + k]!;
        expect(got[t * outputs + o], `${t}, ${o}`).toBeCloseTo(sum, 4);
      }
    }
  });
});
