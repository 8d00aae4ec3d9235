import { describe, shapes as known, type Mixers, type ModelDescription, parseConfig } from '@dsla/models';
import { joinGraphs, type LayerGraph } from '@dsla/spec';

export { randomWeights } from '@dsla/models';

// Models of real size with random weights: their speed is that of the real ones.

const shapes: Record<string, unknown> = {
  ...known,
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

/** The tapes of a whole model: its segments, by default as they come, as one, and the head. */
export function bodyAndHead(
  { segments, head }: ModelDescription,
  graphs: readonly LayerGraph[] = segments.map(({ versions }) => versions.default),
): LayerGraph[] {
  return [joinGraphs(graphs, new Set(['x'])), head];
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
