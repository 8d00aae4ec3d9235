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

/** Small random numbers; every weight is the beginning of one block of them. */
export function randomWeights({ weights }: ModelDescription): WeightSource {
  const blocks = new Map<string, { readonly dtype: 'f32' | 'f16'; readonly data: Float32Array | Uint16Array }>();
  const blockOf = (dtype: 'f32' | 'f16', count: number) => {
    const known = blocks.get(dtype);
    if (known && known.data.length >= count) return known.data;
    const data = noise(dtype, count);
    blocks.set(dtype, { dtype, data });
    return data;
  };
  return {
    spec: (name) => ({ storage: 'f16', shape: weights[name]!.shape }),
    async read(name, dtype) {
      const { shape } = weights[name]!;
      const count = elementCount(shape);
      return { dtype, shape, data: blockOf(dtype, count).subarray(0, count) };
    },
  };
}

/** At most 0.02 each; a pattern of 2^20 numbers. */
function noise(dtype: 'f32' | 'f16', count: number): Float32Array | Uint16Array {
  let state = 1;
  const pattern = Float32Array.from({ length: Math.min(count, 1 << 20) }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state / 2 ** 32 - 0.5) * 0.04;
  });
  const from = dtype === 'f32' ? pattern : toFloat16(pattern);
  const data = dtype === 'f32' ? new Float32Array(count) : new Uint16Array(count);
  for (let at = 0; at < count; at += from.length) data.set(from.subarray(0, Math.min(from.length, count - at)), at);
  return data;
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
