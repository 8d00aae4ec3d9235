import { z } from 'zod';
import { count, flag, only, orElse, positive, rules, unquantised } from './config-fields.js';
import type { RopeScaling } from './rope.js';

export interface LlamaConfig {
  readonly architecture: 'llama';
  readonly vocabulary: number;
  /** Longest sequence it was trained for, in tokens. */
  readonly context: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly normEps: number;
  /** The output projection is the embedding table. */
  readonly tied: boolean;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  readonly theta: number;
  readonly scaling?: RopeScaling;
}

const theta = { rope_theta: orElse(positive, 10000), partial_rotary_factor: only(1) };
const rope = z.discriminatedUnion(
  'rope_type',
  [
    z.object({ rope_type: z.literal('default'), ...theta }),
    z.object({ rope_type: z.literal('linear'), ...theta, factor: positive }),
    z.object({
      rope_type: z.literal('llama3'),
      ...theta,
      factor: positive,
      low_freq_factor: positive,
      high_freq_factor: positive,
      original_max_position_embeddings: count,
    }),
  ],
  { error: 'only the types default, linear and llama3 are supported' },
);

/** One spelling for `rope_theta` and `rope_scaling` of old files and `rope_parameters` of transformers 5. */
function spellRope(json: unknown): unknown {
  const { rope_theta, rope_scaling, rope_parameters, ...rest } = json as Record<string, unknown>;
  const found = { rope_theta, ...(rope_scaling as object), ...(rope_parameters as object) } as Record<string, unknown>;
  return { ...rest, rope_parameters: { ...found, rope_type: found.rope_type ?? found.type ?? 'default' } };
}

const fields = z.object({
  vocab_size: count,
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: count,
  num_attention_heads: count,
  num_key_value_heads: orElse(count.optional(), undefined),
  head_dim: orElse(count.optional(), undefined),
  max_position_embeddings: orElse(count, 2048),
  rms_norm_eps: orElse(positive, 1e-6),
  hidden_act: only('silu'),
  tie_word_embeddings: flag(false),
  attention_bias: flag(false),
  mlp_bias: flag(false),
  rope_parameters: rope,
  quantization_config: unquantised,
});
type Fields = z.output<typeof fields>;

const kvHeads = (raw: Fields): number => raw.num_key_value_heads ?? raw.num_attention_heads;
const headDim = (raw: Fields): number => raw.head_dim ?? raw.hidden_size / raw.num_attention_heads;

export const llamaSchema: z.ZodType<LlamaConfig> = z
  .preprocess(
    spellRope,
    rules(fields, [
      ['num_key_value_heads', 'must divide num_attention_heads', (raw) => raw.num_attention_heads % kvHeads(raw) > 0],
      ['head_dim', 'must be even, or num_attention_heads must divide hidden_size', (raw) => headDim(raw) % 2 > 0],
    ]),
  )
  .transform(
    (raw): LlamaConfig => ({
      architecture: 'llama',
      vocabulary: raw.vocab_size,
      context: raw.max_position_embeddings,
      hidden: raw.hidden_size,
      intermediate: raw.intermediate_size,
      layers: raw.num_hidden_layers,
      heads: raw.num_attention_heads,
      kvHeads: kvHeads(raw),
      headDim: headDim(raw),
      normEps: raw.rms_norm_eps,
      tied: raw.tie_word_embeddings,
      attentionBias: raw.attention_bias,
      mlpBias: raw.mlp_bias,
      theta: raw.rope_parameters.rope_theta,
      ...scaling(raw.rope_parameters),
    }),
  );

function scaling(raw: z.output<typeof rope>): { scaling?: RopeScaling } {
  if (raw.rope_type === 'default') return {};
  if (raw.rope_type === 'linear') return { scaling: { type: 'linear', factor: raw.factor } };
  return {
    scaling: {
      type: 'llama3',
      factor: raw.factor,
      lowFreqFactor: raw.low_freq_factor,
      highFreqFactor: raw.high_freq_factor,
      original: raw.original_max_position_embeddings,
    },
  };
}
