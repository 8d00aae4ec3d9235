import { describe, type Mixers, type ModelDescription, parseConfig } from '@dsla/models';
import { elementCount, toFloat16, type WeightSource } from '@dsla/spec';

// Models of real size with random weights: their speed is that of the real ones.

const shapes: Record<string, unknown> = {
  'llama2-7b': {
    model_type: 'llama',
    vocab_size: 32000,
    hidden_size: 4096,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 32,
    intermediate_size: 11008,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    max_position_embeddings: 4096,
  },
  'zamba-7b': {
    model_type: 'zamba',
    vocab_size: 32000,
    hidden_size: 3712,
    num_hidden_layers: 76,
    intermediate_size: 14848,
    num_attention_heads: 16,
    num_key_value_heads: 16,
    n_mamba_heads: 2,
    mamba_d_state: 16,
    mamba_d_conv: 4,
    mamba_expand: 2,
    mamba_dt_rank: 232,
    rms_norm_eps: 1e-5,
    attn_layer_period: 6,
    attn_layer_offset: 4,
    max_position_embeddings: 4096,
  },
  // To try the benches themselves on a small machine.
  tiny: {
    model_type: 'llama',
    vocab_size: 1000,
    hidden_size: 128,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    intermediate_size: 256,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    max_position_embeddings: 4096,
  },
};

export const mixers: Mixers = {
  window: { kind: 'window', size: 64, sinks: 4 },
  foldable: { kind: 'dual' },
  scalar: { kind: 'dual', featureMap: 'none', normaliser: false, ropeInState: true },
  vector: { kind: 'dual', gate: 'vector', featureMap: 'none', normaliser: false, ropeInState: true },
};

export function synthetic(name: string, layers?: number): ModelDescription {
  const shape = shapes[name];
  if (!shape) throw new Error(`shape must be one of ${Object.keys(shapes).join(', ')}, got ${name}`);
  const config = parseConfig(layers ? { ...shape, num_hidden_layers: layers } : shape);
  return describe(config, config.architecture === 'llama' ? { mixers } : {});
}

/** Small random numbers, one block of them for all weights. */
export function randomWeights({ weights }: ModelDescription): WeightSource {
  const length = 1 << 24;
  let state = 1;
  const single = Float32Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 32 - 0.5) * 0.04;
  });
  const half = toFloat16(single);
  return {
    spec: (name) => ({ storage: 'f16', shape: weights[name]!.shape }),
    async read(name, as) {
      const { shape } = weights[name]!;
      const block = as === 'f32' ? single : half;
      const count = elementCount(shape);
      const data = as === 'f32' ? new Float32Array(count) : new Uint16Array(count);
      for (let at = 0; at < count; at += length) data.set(block.subarray(0, Math.min(length, count - at)), at);
      return { dtype: as, shape, data };
    },
  };
}

export interface Statistics {
  readonly n: number;
  readonly mean: number;
  readonly sd: number;
  readonly median: number;
}

export function statistics(samples: readonly number[]): Statistics {
  const n = samples.length;
  const mean = samples.reduce((a, b) => a + b, 0) / n;
  const sd = Math.sqrt(samples.reduce((sum, x) => sum + (x - mean) ** 2, 0) / Math.max(n - 1, 1));
  const sorted = [...samples].sort((a, b) => a - b);
  return { n, mean, sd, median: sorted[Math.floor(n / 2)]! };
}
