import type { LayerGraph } from '@dsla/spec';
import { type Block, type BlockWeights, type Linear, type MixerTapes, output, project, softmax } from './block.js';
import type { LlamaConfig } from './config-llama.js';
import { type Mixers, mixerTapes } from './mixers.js';
import type { ModelDescription, Segment } from './model.js';
import { type Names, names } from './names.js';
import { rope } from './rope.js';
import { tape } from './tape.js';

/**
 * Llama (Touvron et al. 2023): per layer h += Attention(norm(h)), h += MLP(norm(h)). Three segments a layer, so that the
 * projections run once for all rows of a batch, whatever their mixers.
 */
export function llama(config: LlamaConfig, mixers: Mixers): ModelDescription {
  const { vocabulary, hidden, tied, normEps } = config;
  const table = names();
  // A tied checkpoint may have kept either name.
  const spare = tied ? ['lm_head.weight'] : [];
  const embedding = table.add('embed', [vocabulary, hidden], ['model.embed_tokens.weight', ...spare]);
  const norm = table.add('norm', [hidden], ['model.norm.weight']);
  const unembedding = tied ? embedding : table.add('head', [vocabulary, hidden], ['lm_head.weight']);
  const layers = blocks(config, table).map((block) => layerOf(block, mixers, table));
  const head = (name: string, lastOnly: boolean): LayerGraph =>
    tape(name, (t) => {
      const x = t.input('x', hidden);
      const wanted = lastOnly ? t.node({ op: 'lastToken', x }) : x;
      t.output('logits', t.linear(t.norm(wanted, norm, normEps), unembedding));
    });
  return {
    architecture: 'llama',
    vocabulary,
    context: config.context,
    convertible: config.layers,
    mixers: Object.keys(mixers),
    segments: [
      {
        name: 'embed',
        versions: { default: tape('embed', (t) => t.output('x', t.node({ op: 'embed', table: embedding }))) },
      },
      ...layers.flatMap(({ segments }) => segments),
    ],
    head: head('head', true),
    headAll: head('headAll', false),
    folds: foldsOf(layers.map(({ tapes }) => tapes)),
    weights: table.weights,
  };
}

type ByMixer<T> = Readonly<Record<string, T>>;

function layerOf(block: Block, mixers: Mixers, table: Names): { segments: Segment[]; tapes: ByMixer<MixerTapes> } {
  const { layer, weights } = block;
  const tapes = Object.fromEntries(
    Object.entries(mixers).map(([mixer, options]) => [mixer, mixerTapes(mixer, options, block, table)]),
  );
  const segment = (part: 'project' | 'attention' | 'output', make: (name: string) => LayerGraph): Segment => {
    const name = `layers.${layer}.${part}`;
    const others = Object.entries(tapes).flatMap(([mixer, { [part]: version }]) => (version ? [[mixer, version]] : []));
    const versions = { default: make(name), ...Object.fromEntries(others) };
    return others.length > 0 ? { name, layer, versions } : { name, versions };
  };
  const needsInput = Object.values(tapes).some((mixer) => mixer.needsInput);
  return {
    tapes,
    segments: [
      segment('project', (name) => project(name, block, weights, needsInput)),
      segment('attention', (name) => softmax(name, block)),
      segment('output', (name) => output(name, block, weights.output)),
    ],
  };
}

function foldsOf(layers: readonly ByMixer<MixerTapes>[]): ByMixer<readonly LayerGraph[]> {
  const mixers = Object.keys(layers[0] ?? {});
  return Object.fromEntries(
    mixers.flatMap((mixer) => {
      const folds = layers.flatMap(({ [mixer]: tapes }) => tapes?.fold ?? []);
      return folds.length > 0 ? [[mixer, folds]] : [];
    }),
  );
}

function blocks(config: LlamaConfig, table: Names): Block[] {
  const { hidden, heads, kvHeads, headDim, normEps } = config;
  const shape = { hidden, heads, kvHeads, headDim, normEps, scale: headDim ** -0.5 };
  const rotation = rope(headDim, config.theta, config.scaling);
  return Array.from({ length: config.layers }, (_, layer) => ({
    layer,
    ...shape,
    rope: rotation,
    weights: blockWeights(config, layer, table),
  }));
}

function blockWeights(config: LlamaConfig, layer: number, table: Names): BlockWeights {
  const { hidden, intermediate, heads, kvHeads, headDim } = config;
  const at = `layers.${layer}`;
  const norm = (name: string, tensor: string): string =>
    table.add(`${at}.${name}`, [hidden], [`model.${at}.${tensor}.weight`]);
  const linear = (name: string, out: number, width: number, tensor: string, bias: boolean): Linear => {
    const weight = table.add(`${at}.${name}`, [out, width], [`model.${at}.${tensor}.weight`]);
    return bias ? [weight, table.add(`${at}.${name}.bias`, [out], [`model.${at}.${tensor}.bias`])] : [weight];
  };
  const { attentionBias, mlpBias } = config;
  return {
    inputNorm: norm('attention.norm', 'input_layernorm'),
    query: linear('attention.query', heads * headDim, hidden, 'self_attn.q_proj', attentionBias),
    key: linear('attention.key', kvHeads * headDim, hidden, 'self_attn.k_proj', attentionBias),
    value: linear('attention.value', kvHeads * headDim, hidden, 'self_attn.v_proj', attentionBias),
    output: linear('attention.output', hidden, heads * headDim, 'self_attn.o_proj', attentionBias),
    outputNorm: norm('mlp.norm', 'post_attention_layernorm'),
    gate: linear('mlp.gate', intermediate, hidden, 'mlp.gate_proj', mlpBias),
    up: linear('mlp.up', intermediate, hidden, 'mlp.up_proj', mlpBias),
    down: linear('mlp.down', hidden, intermediate, 'mlp.down_proj', mlpBias),
  };
}
