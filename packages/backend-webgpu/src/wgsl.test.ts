import { describe as describeModel, type Mixers, type ModelConfig, parseConfig, shapes, tapesOf } from '@dsla/models';
import { kvState, type LayerGraph } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { loadGpu, must, workgroupBytes } from './adapter.js';
import type { Traits } from './builder.js';
import { workgroupMemory } from './kernel-runner.js';
import type { Kernel } from './kernels/kernel.js';
import { linearMatrix } from './kernels/linear-matrix.js';
import { linearVector } from './kernels/linear-vector.js';
import type { Format } from './kernels/quantise.js';
import { splitAttention } from './kernels/split-attention.js';
import { tileAttention } from './kernels/tile-attention.js';
import { lower } from './lower.js';
import type { Op } from './program.js';
import type { View } from './view.js';

// WGSL that needs float16 or subgroup matrices runs on no driver without a GPU; Dawn's null backend validates it.

const llama = parseConfig({ ...shapes['llama2-7b'], num_hidden_layers: 1 });

const grouped = parseConfig({
  model_type: 'llama',
  vocab_size: 1000,
  hidden_size: 512,
  num_hidden_layers: 1,
  num_attention_heads: 8,
  num_key_value_heads: 2,
  intermediate_size: 1000,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  max_position_embeddings: 4096,
});

const zamba = parseConfig({ ...shapes['zamba-7b'], num_hidden_layers: 3 });

const mixers: Mixers = {
  window: { kind: 'window', size: 64, sinks: 4 },
  foldable: { kind: 'dual' },
  vector: { kind: 'dual', gate: 'vector', featureMap: 'none', normaliser: false, ropeInState: true },
  single: { kind: 'dual', states: 1, window: 0, outputNorm: true },
};

const devices: Record<string, Traits> = {
  'float16 with matrices': { type: 'f16', lanes: 32, matrices: true, threads: 1024 },
  'float16 with matrices, 8 bits': { type: 'f16', lanes: 32, matrices: true, weights: 'q8' },
  'float16 with matrices, 4 bits': { type: 'f16', lanes: 32, matrices: true, weights: 'q4' },
  'float16 with subgroups': { type: 'f16', lanes: 16, matrices: false },
  'plain float16': { type: 'f16', lanes: 0, matrices: false },
  'float32 with subgroups': { type: 'f32', lanes: 32, matrices: false },
  'plain float32': { type: 'f32', lanes: 0, matrices: false },
};

/** All dispatches of a model. */
function opsOf(config: ModelConfig, traits: Traits): Op[] {
  const options = config.architecture === 'llama' ? { mixers } : {};
  const model = describeModel(config, options);
  return tapesOf(model).flatMap((graph) => [...lower(graph, (name) => model.weights[name]!.shape, traits).ops]);
}

/** The different kernels of a model. */
function kernelsOf(ops: readonly Op[]): Kernel[] {
  return [...new Map(ops.map(({ kernel }) => [kernel.code, kernel])).values()];
}

/** What a kernel may take the numbers of a buffer for. */
const readAs: Readonly<Record<Format, readonly string[]>> = {
  f32: ['f32', 'vec2f', 'vec4f'],
  f16: ['f16', 'u32', 'vec2u', 'vec4u'],
  q8: ['vec4u'],
  q4: ['vec4u'],
};

/** Buffers of a dispatch that its kernel takes for something else. */
function misread({ kernel, buffers }: Op): string[] {
  return buffers.flatMap((ref, index) => {
    const declared = new RegExp(`@group\\(1\\) @binding\\(${index}\\) [^:]*: array<(\\w+)>`).exec(kernel.code)?.[1];
    const type = ref.kind === 'weight' ? ref.type : ref.kind === 'temp' ? ref.temp.type : undefined;
    const known = ref.kind === 'value' ? ref.value.type : type;
    return known && !readAs[known].includes(declared!) ? [`${kernel.name} ${index}: ${known} as ${declared}`] : [];
  });
}

async function nullDevice(): Promise<GPUDevice> {
  const gpu = must(await loadGpu({ extra: { backend: 'null' } }));
  const adapter = (await gpu.requestAdapter())!;
  const features = ['shader-f16', 'subgroups', 'chromium-experimental-subgroup-matrix'] as unknown as GPUFeatureName[];
  return await adapter.requestDevice({ requiredFeatures: features });
}

/** Dawn's complaint about a kernel, or nothing. */
async function complaint(device: GPUDevice, { name, code }: Kernel): Promise<string[]> {
  device.pushErrorScope('validation');
  device.createShaderModule({ label: name, code });
  const error = await device.popErrorScope();
  return error ? [`${name}: ${error.message}`] : [];
}

describe('emitted WGSL', () => {
  for (const [label, traits] of Object.entries(devices)) {
    it.each([
      ['Llama-2-7B', llama],
      ['grouped queries', grouped],
      ['Zamba-7B', zamba],
    ] as const)(`is valid on ${label}: %s`, async (_, config) => {
      const device = await nullDevice();
      const ops = opsOf(config, traits);
      expect(ops.flatMap(misread)).toEqual([]);
      const kernels = kernelsOf(ops);
      const complaints = (await Promise.all(kernels.map((one) => complaint(device, one)))).flat();
      expect(complaints).toEqual([]);
      expect(kernels.length).toBeGreaterThan(10);
      // What traits.matrices asks for, and what an adapter must have.
      expect(Math.max(...kernels.map(workgroupMemory))).toBeLessThanOrEqual(traits.matrices ? 49152 : workgroupBytes);
      device.destroy();
    });
  }

  it('of a Llama is this list of kernels, those for one token and those for many', () => {
    const traits = devices['float16 with matrices']!;
    const model = describeModel(llama);
    const lists = [...model.segments.map(({ versions }) => versions.default), model.head].map((graph) => {
      const { ops } = lower(graph, (name) => model.weights[name]!.shape, traits);
      return `${graph.name}: ${ops.map(({ kernel }) => kernel.name).join(', ')}`;
    });
    expect(lists).toMatchSnapshot();
  });

  it.each([64, 32, 24])('has attention of short and of long rows where %i of 64 features turn', (rotaryDim) => {
    const rope = { rotaryDim, frequencies: Array.from({ length: rotaryDim / 2 }, () => 0.1) };
    const kv = kvState('kv', { kvHeads: 2, headDim: 64 });
    const graph: LayerGraph = {
      name: 'attention',
      states: [kv],
      nodes: [
        ...['q', 'k', 'v'].map((name) => ({ op: 'input', name, width: 128 }) as const),
        {
          op: 'softmaxAttention',
          q: 0,
          k: 1,
          v: 2,
          state: 'kv',
          heads: 2,
          kvHeads: 2,
          headDim: 64,
          scale: 0.125,
          rope,
        },
        { op: 'output', name: 'o', x: 3 },
      ],
    };
    const { ops } = lower(graph, () => [], devices['float16 with matrices']!);
    const attention = ops.filter(({ kernel }) => kernel.name.includes('attention'));
    const short = { rows: 1, tokens: 1, tiles: 0, singles: 1, splits: 1 } as View;
    const long = { rows: 1, tokens: 64, tiles: 1, singles: 0, splits: 0 } as View;
    for (const view of [short, long]) {
      const busy = attention.filter(({ grid }) => !grid(view).includes(0));
      expect(busy.map(({ kernel }) => kernel.name)).toHaveLength(1);
    }
  });

  it('has not changed', () => {
    const half = (width: number) => ({ width, type: 'f16' }) as const;
    const shape = { heads: 8, kvHeads: 2, headDim: 64, scale: 0.125 };
    const kernels = [
      linearVector({
        domain: 'token',
        x: half(128),
        format: 'f16',
        parts: [{ y: half(64), bias: true }],
        shape: { size: 32, items: 2, rows: 8, ahead: 4, lanes: 32, places: 8 },
      }),
      linearVector({
        domain: 'token',
        x: half(128),
        format: 'q4',
        parts: [{ y: half(64), bias: false, gate: 'silu' }],
        shape: { size: 32, items: 1, rows: 4, ahead: 4, lanes: 32, places: 1 },
        eps: 1e-5,
      }),
      linearMatrix('token', half(64), half(128), { bias: false }),
      splitAttention(shape, 'f16', { q: 'f32', k: 'f32' }, 32),
      tileAttention(shape),
    ];
    for (const { name, code } of kernels) expect(code).toMatchSnapshot(name);
  });

  it('is refused when it is wrong', async () => {
    const device = await nullDevice();
    expect(await complaint(device, { name: 'wrong', code: 'fn main( {', access: [] })).toHaveLength(1);
    device.destroy();
  });
});
