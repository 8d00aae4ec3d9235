import { z } from 'zod';
import { count, flag, integer, only, orElse, positive, rules, unquantised } from './config-fields.js';

/** Zamba-7B-v1 (not Zamba2, which is another architecture). */
export interface ZambaConfig {
  readonly architecture: 'zamba';
  readonly vocabulary: number;
  readonly context: number;
  readonly hidden: number;
  readonly intermediate: number;
  readonly layers: number;
  /** Layers that the shared transformer block feeds, ascending. */
  readonly hybrids: readonly number[];
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Channels of the convolution and the scan: mamba_expand * hidden. */
  readonly channels: number;
  readonly mambaHeads: number;
  readonly stateSize: number;
  readonly kernel: number;
  readonly convBias: boolean;
  readonly timeRank: number;
  readonly activation: 'gelu' | 'silu';
  readonly normEps: number;
  readonly tied: boolean;
}

const fields = z.object({
  vocab_size: count,
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: count,
  layers_block_type: orElse(z.array(z.enum(['mamba', 'linear_attention', 'hybrid'])).optional(), undefined),
  attn_layer_period: orElse(count, 6),
  attn_layer_offset: orElse(integer(0), 4),
  num_attention_heads: count,
  num_key_value_heads: orElse(count.optional(), undefined),
  attention_head_dim: orElse(count.optional(), undefined),
  hidden_act: only('gelu', 'silu'),
  hidden_mamba_act: only('silu'),
  n_mamba_heads: orElse(count, 2),
  mamba_d_state: orElse(count, 16),
  mamba_d_conv: orElse(integer(2), 4),
  mamba_expand: orElse(count, 2),
  mamba_dt_rank: orElse(z.union([count, z.literal('auto')]), 'auto'),
  mamba_conv_bias: flag(true),
  mamba_proj_bias: only(false),
  rms_norm_eps: orElse(positive, 1e-5),
  max_position_embeddings: orElse(count, 4096),
  tie_word_embeddings: flag(true),
  quantization_config: unquantised,
});
type Fields = z.output<typeof fields>;

const channels = (raw: Fields): number => raw.mamba_expand * raw.hidden_size;
const kvHeads = (raw: Fields): number => raw.num_key_value_heads ?? raw.num_attention_heads;
const headDim = (raw: Fields): number => raw.attention_head_dim ?? (2 * raw.hidden_size) / raw.num_attention_heads;

/** Layers 0, 1, 2 are mamba, mamba, hybrid; of the others, i counted from layer 3 on, i mod period = offset is hybrid. */
function hybrids(raw: Fields): number[] {
  const listed = raw.layers_block_type;
  const hybrid = (layer: number): boolean =>
    listed
      ? listed[layer] === 'hybrid'
      : layer === 2 || (layer > 2 && (layer - 3) % raw.attn_layer_period === raw.attn_layer_offset);
  return Array.from({ length: raw.num_hidden_layers }, (_, layer) => layer).filter(hybrid);
}

const checked = rules(fields, [
  [
    'layers_block_type',
    'must have num_hidden_layers entries',
    (raw) => raw.layers_block_type !== undefined && raw.layers_block_type.length !== raw.num_hidden_layers,
  ],
  ['num_key_value_heads', 'must divide num_attention_heads', (raw) => raw.num_attention_heads % kvHeads(raw) > 0],
  ['num_attention_heads', 'must divide 2 * hidden_size', (raw) => headDim(raw) % 1 > 0],
  ['n_mamba_heads', 'must divide mamba_expand * hidden_size', (raw) => channels(raw) % raw.n_mamba_heads > 0],
]);

export const zambaSchema: z.ZodType<ZambaConfig> = checked.transform(
  (raw): ZambaConfig => ({
    architecture: 'zamba',
    vocabulary: raw.vocab_size,
    context: raw.max_position_embeddings,
    hidden: raw.hidden_size,
    intermediate: raw.intermediate_size,
    layers: raw.num_hidden_layers,
    hybrids: hybrids(raw),
    heads: raw.num_attention_heads,
    kvHeads: kvHeads(raw),
    headDim: headDim(raw),
    channels: channels(raw),
    mambaHeads: raw.n_mamba_heads,
    stateSize: raw.mamba_d_state,
    kernel: raw.mamba_d_conv,
    convBias: raw.mamba_conv_bias,
    timeRank: raw.mamba_dt_rank === 'auto' ? Math.ceil(raw.hidden_size / 16) : raw.mamba_dt_rank,
    activation: raw.hidden_act,
    normEps: raw.rms_norm_eps,
    tied: raw.tie_word_embeddings,
  }),
);
