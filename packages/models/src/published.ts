import { DslaError, type DualForm, dualState, type Weight } from '@dsla/spec';
import { type Block, inputs, type Linear, type MixerTapes, output, project } from './block.js';
import { filled, identity, normal } from './initial.js';
import type { Names } from './names.js';
import { tape } from './tape.js';

/**
 * DSLA as its authors' code runs it (arXiv 2506.09316): own q, k, v, o, dense vector gates from the layer's normed input, two
 * states, one mix a layer, no rotation, no feature map, no normaliser. Its states cannot be rebuilt from a KV cache. The code's
 * clamp of log decays at -50 is left out: it acts below a gate logit of -800 only.
 */
export interface PublishedOptions {
  readonly kind: 'published';
  /** Of the recency gate's first weights. */
  readonly seed?: number;
}

/** @throws DslaError E_UNSUPPORTED for a model with grouped queries */
export function published(mixer: string, { seed = 0 }: PublishedOptions, block: Block, names: Names): MixerTapes {
  const { heads, kvHeads, headDim, hidden, layer } = block;
  if (heads !== kvHeads) {
    throw new DslaError('E_UNSUPPORTED', {
      where: `mixer ${mixer}`,
      rule: `the published form needs as many kv heads as query heads, ${heads}`,
      got: kvHeads,
      cure: 'Use the dual form, which knows grouped queries.',
    });
  }
  const name = `layers.${layer}.${mixer}`;
  const width = heads * headDim;
  // After our own name the reference code's, which for q, k, v, o is also the base checkpoint's: the untuned start.
  const add = (suffix: string, shape: readonly number[], tensor: string, initial?: () => Float32Array): Weight =>
    names.add(`${name}.${suffix}`, shape, [`${name}.${suffix}`, `model.layers.${layer}.self_attn.${tensor}`], {
      mixer,
      ...(initial && { initial }),
    });
  const gate = (suffix: string, tensor: string, initial: () => Float32Array): Linear => [
    add(`${suffix}.weight`, [width, hidden], `${tensor}.weight`, initial),
    add(`${suffix}.bias`, [width], `${tensor}.bias`, () => filled(width, 0)),
  ];
  // The paper's words: history close to the identity matrix, recency N(0, s^2) with s not given; 0.02 is Llama's own start.
  const far = gate('far', 'gk_proj', () => identity(width, hidden));
  const near = gate('near', 'gk_proj2', () => normal(width * hidden, 0.02, seed * 1000 + layer));
  const mix = add('mix', [1, 2], 'alpha_list', () => filled(2, 0));
  const projections = {
    query: [add('query', [width, hidden], 'q_proj.weight')],
    key: [add('key', [width, hidden], 'k_proj.weight')],
    value: [add('value', [width, hidden], 'v_proj.weight')],
    output: [add('output', [hidden, width], 'o_proj.weight')],
  } as const;
  const state = dualState(name, form(kvHeads, headDim));
  return {
    project: project(`layers.${layer}.project ${mixer}`, block, projections, true),
    attention: tape(`layers.${layer}.attention ${mixer}`, (t) => {
      const { q, k, v } = inputs(t, block);
      const a = t.input('a', hidden);
      const gates = t.concat(t.linear(a, ...far), t.linear(a, ...near));
      const rest = { mix, state: name, heads, scale: headDim ** -0.5, form: form(kvHeads, headDim) };
      t.output('o', t.node({ op: 'dualLinearAttention', q, k, v, gates, ...rest }, state));
    }),
    output: output(`layers.${layer}.output ${mixer}`, block, projections.output),
  };
}

function form(kvHeads: number, headDim: number): DualForm {
  return { states: 2, kvHeads, headDim, gate: 'vector', temperature: 16, normaliser: false, ropeInState: false };
}
