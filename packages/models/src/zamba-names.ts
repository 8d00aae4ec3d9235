import type { Weight } from '@dsla/spec';
import type { ZambaConfig } from './config-zamba.js';
import type { WeightRef } from './model.js';
import type { Names } from './names.js';

// Two layouts exist. Current: model.layers.{l}.*, the shared block under one hybrid layer (2, but a re-save may choose
// another). Old (first months of the upload): model.block.*, model.mamba_layers.{l}.*, model.linear_layers.{j}.

export interface ZambaWeights {
  readonly embed: Weight;
  readonly norm: Weight;
  readonly head: Weight;
  readonly shared: SharedWeights;
  readonly layers: readonly { readonly norm: Weight; readonly linear?: Weight; readonly mamba: MambaWeights }[];
}

export interface SharedWeights {
  readonly inputNorm: Weight;
  readonly query: Weight;
  readonly key: Weight;
  readonly value: Weight;
  readonly output: Weight;
  readonly outputNorm: Weight;
  readonly gate: Weight;
  readonly up: Weight;
  readonly down: Weight;
}

export interface MambaWeights {
  readonly x: Weight;
  readonly z: Weight;
  readonly conv: Weight;
  readonly convBias?: Weight;
  /** One a head, as the next two. */
  readonly select: readonly Weight[];
  readonly time: readonly Weight[];
  readonly timeBias: readonly Weight[];
  readonly logA: Weight;
  readonly d: Weight;
  readonly out: Weight;
}

export function zambaWeights(config: ZambaConfig, table: Names): ZambaWeights {
  const { vocabulary, hidden, hybrids, layers, tied } = config;
  const spare = tied ? ['lm_head.weight'] : [];
  const embed = table.add('embed', [vocabulary, hidden], ['model.embed_tokens.weight', ...spare]);
  return {
    embed,
    norm: table.add('norm', [hidden], ['model.final_layernorm.weight']),
    head: tied ? embed : table.add('head', [vocabulary, hidden], ['lm_head.weight']),
    shared: sharedWeights(config, table),
    layers: Array.from({ length: layers }, (_, layer) => {
      const at = `layers.${layer}`;
      const place = hybrids.indexOf(layer);
      const current = place < 0 ? `model.${at}` : `model.${at}.mamba_decoder`;
      const add: Add = (name, shape, tensor, part) =>
        table.add(`${at}.${name}`, shape, [`${current}.${tensor}`, `model.mamba_layers.${layer}.${tensor}`], part);
      const linear = [`model.${at}.linear.weight`, `model.linear_layers.${place}.weight`];
      return {
        norm: add('norm', [hidden], 'input_layernorm.weight'),
        ...(place >= 0 && { linear: table.add(`${at}.linear`, [hidden, hidden], linear) }),
        mamba: mambaWeights(config, add),
      };
    }),
  };
}

type Add = (name: string, shape: readonly number[], tensor: string, part?: Partial<WeightRef>) => Weight;

function sharedWeights(config: ZambaConfig, table: Names): SharedWeights {
  const { hidden, intermediate, heads, kvHeads, headDim, hybrids } = config;
  const add = (name: string, shape: readonly number[], tensor: string, old: string = tensor): Weight =>
    table.add(`shared.${name}`, shape, [
      ...hybrids.map((layer) => `model.layers.${layer}.shared_transf.${tensor}.weight`),
      `model.block.${old}.weight`,
    ]);
  return {
    inputNorm: add('attention.norm', [2 * hidden], 'input_layernorm'),
    query: add('attention.query', [heads * headDim, 2 * hidden], 'self_attn.q_proj'),
    key: add('attention.key', [kvHeads * headDim, 2 * hidden], 'self_attn.k_proj'),
    value: add('attention.value', [kvHeads * headDim, 2 * hidden], 'self_attn.v_proj'),
    output: add('attention.output', [hidden, heads * headDim], 'self_attn.o_proj'),
    outputNorm: add('mlp.norm', [hidden], 'pre_ff_layernorm'),
    // The old layout applied the activation to up_proj.
    gate: add('mlp.gate', [intermediate, hidden], 'feed_forward.gate_proj', 'feed_forward.up_proj'),
    up: add('mlp.up', [intermediate, hidden], 'feed_forward.up_proj', 'feed_forward.gate_proj'),
    down: add('mlp.down', [hidden, intermediate], 'feed_forward.down_proj'),
  };
}

function mambaWeights(config: ZambaConfig, add: Add): MambaWeights {
  const { hidden, channels, mambaHeads, stateSize, kernel, convBias, timeRank } = config;
  const width = channels / mambaHeads;
  const selected = timeRank + 2 * stateSize;
  // in_proj interleaves: x in even rows, the gate z in odd ones.
  const half = (name: string, start: number): Weight =>
    add(`mamba.${name}`, [channels, hidden], 'mamba.in_proj.weight', {
      stored: [2 * channels, hidden],
      rows: { start, step: 2 },
    });
  const perHead = (name: string, shape: readonly number[], tensor: string): Weight[] =>
    Array.from({ length: mambaHeads }, (_, index) =>
      add(`mamba.${name}.${index}`, shape, tensor, { stored: [mambaHeads, ...shape], index }),
    );
  return {
    x: half('x', 0),
    z: half('z', 1),
    conv: add('mamba.conv', [channels, 1, kernel], 'mamba.conv1d.weight'),
    ...(convBias && { convBias: add('mamba.conv.bias', [channels], 'mamba.conv1d.bias') }),
    select: perHead('select', [selected, width], 'mamba.x_proj_weight'),
    time: perHead('time', [width, timeRank], 'mamba.dt_proj_weight'),
    timeBias: perHead('time.bias', [width], 'mamba.dt_proj_bias'),
    logA: add('mamba.log_a', [mambaHeads, width, stateSize], 'mamba.A_log'),
    d: add('mamba.d', [mambaHeads, width], 'mamba.D'),
    out: add('mamba.out', [hidden, channels], 'mamba.out_proj.weight'),
  };
}
