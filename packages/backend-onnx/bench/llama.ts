import { describe, parseConfig } from '@dsla/models';
import { elementCount, f32, joinGraphs, type LayerGraph, type WeightSource } from '@dsla/spec';

/** The shape of the small Llama of apps/harness/checkpoints, with random weights. */
export const shape = {
  model_type: 'llama',
  vocab_size: 4096,
  hidden_size: 192,
  intermediate_size: 512,
  num_hidden_layers: 8,
  num_attention_heads: 3,
  num_key_value_heads: 3,
  head_dim: 64,
  tie_word_embeddings: true,
  max_position_embeddings: 4096,
};

const model = describe(parseConfig(shape), { mixers: {} });
const segments = model.segments.map(({ versions }) => versions.default);

export const parameters: number = Object.values(model.weights).reduce(
  (sum, { shape: of }) => sum + elementCount(of),
  0,
);

export type Form = 'fixed' | 'swappable';

/** By form, the tapes that are compiled. */
export const forms: Readonly<Record<Form, readonly LayerGraph[]>> = {
  /** A plan that cannot change: the body and the head. */
  fixed: [joinGraphs(segments, new Set(['x'])), model.head],
  /** Every layer's mixer may be exchanged: each attention alone, what lies between two of them as one. */
  swappable: [...swappable(), model.head],
};

/** Everything as one tape. */
export const whole: LayerGraph = joinGraphs([...segments, model.head], new Set(['logits']));

function swappable(): LayerGraph[] {
  const groups: LayerGraph[][] = [[]];
  for (const segment of segments) {
    if (segment.states.length > 0) groups.push([segment], []);
    else groups.at(-1)!.push(segment);
  }
  return groups.map((group, index) => {
    const later = groups.slice(index + 1).flat();
    const wanted = [...later, model.head].flatMap(({ nodes }) =>
      nodes.flatMap((n) => (n.op === 'input' ? [n.name] : [])),
    );
    return joinGraphs(group, new Set(wanted));
  });
}

/** Normally distributed, the same at every read. */
export const weights: WeightSource = {
  spec: (name) => ({ storage: 'f32', shape: model.weights[name]!.shape }),
  async read(name) {
    const { shape: of } = model.weights[name]!;
    let state = [...name].reduce((sum, letter) => (Math.imul(sum, 31) + letter.charCodeAt(0)) | 0, 1);
    const uniform = (): number => {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      return (state >>> 0) / 2 ** 32;
    };
    const normal = (): number => Math.sqrt(-2 * Math.log(uniform() + 1e-9)) * Math.cos(2 * Math.PI * uniform());
    const spread = of.length === 1 ? 0.1 : (of.at(-1) ?? 1) ** -0.5;
    return f32(
      of,
      Float32Array.from({ length: elementCount(of) }, () => (of.length === 1 ? 1 : 0) + spread * normal()),
    );
  },
};
