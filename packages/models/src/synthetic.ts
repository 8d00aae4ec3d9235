import { DslaError, elementCount, type HostTensor, toFloat16, type WeightSource } from '@dsla/spec';
import type { ModelDescription } from './model.js';

/** Models by the names that people use, as their config.json says: to measure speed without the checkpoint. */
export const shapes: Readonly<Record<'llama2-7b' | 'zamba-7b', Readonly<Record<string, unknown>>>> = {
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
};

/** Numbers that are made; all tensors read them, each from another place. A prime, so that no two rows of a matrix are alike. */
const pattern = 1_048_573;

/**
 * Random weights for a description: uniform, matrices with standard deviation (values a row)^-1/2 so that activations keep
 * their size, vectors around 1; mixers begin at their untuned start. The same at every read. Tensors of different names are not
 * correlated: with q and k alike every score is positive, and sums of them pass what float16 holds.
 */
export function randomWeights({ architecture, weights }: ModelDescription): WeightSource {
  const patterns = new Map<string, Float32Array | Uint16Array>();
  const patternOf = (as: 'f32' | 'f16', width: number): Float32Array | Uint16Array => {
    const key = `${as} ${width}`;
    const values = patterns.get(key) ?? convert(noise(width), as);
    patterns.set(key, values);
    return values;
  };
  const find = (name: string) => {
    const found = weights[name];
    if (found) return found;
    throw new DslaError('E_CONFIG', { where: architecture, rule: 'no such weight', got: name });
  };
  return {
    spec: (name) => ({ storage: 'f16', shape: find(name).shape }),
    async read(name, as): Promise<HostTensor> {
      const { shape, initial } = find(name);
      if (initial) return { dtype: as, shape, data: convert(initial(), as) };
      const count = elementCount(shape);
      const from = patternOf(as, shape.length > 1 ? shape.at(-1)! : 0);
      const data = as === 'f32' ? new Float32Array(count) : new Uint16Array(count);
      let at = placeOf(name);
      for (let filled = 0; filled < count; at = 0) {
        const part = from.subarray(at, at + count - filled);
        data.set(part, filled);
        filled += part.length;
      }
      return { dtype: as, shape, data };
    },
  };
}

/** For rows of `width` values; 0: for vectors. */
function noise(width: number): Float32Array {
  const [middle, spread] = width > 0 ? [0, Math.sqrt(3 / width)] : [1, 0.1];
  let state = 1;
  return Float32Array.from({ length: pattern }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0; // Numerical Recipes
    return middle + spread * (state / 2 ** 31 - 1);
  });
}

/** Where a tensor begins to read. */
function placeOf(name: string): number {
  let hash = 2166136261; // FNV-1a
  for (const character of name) hash = Math.imul(hash ^ character.codePointAt(0)!, 16777619);
  return (hash >>> 0) % pattern;
}

function convert(values: Float32Array, as: 'f32' | 'f16'): Float32Array | Uint16Array {
  return as === 'f32' ? values : toFloat16(values);
}
