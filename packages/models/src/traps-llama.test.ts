import { expect, describe as group, it } from 'vitest';
import { exchange, mapNodes, override, permuteRows } from '../test/alter.js';
import { missing } from '../test/golden.js';
import { missBy, range, type Scene, type Trap } from '../test/trap.js';
import { describe, type LlamaConfig, type ModelDescription } from './index.js';
import { rope } from './rope.js';

// Every known way to get Llama subtly wrong, fallen into on purpose: the golden logits must notice.

const traps: Trap<LlamaConfig>[] = [
  {
    trap: 'rotation of the pairs (2i, 2i+1)',
    model: 'llama-base',
    // Half rotation of permuted q and k is the interleaved rotation of q and k, up to the same permutation of both.
    spoil: (scene) => {
      const half = scene.config.headDim / 2;
      return permuteHeads(scene, (i) => (i < half ? 2 * i : 2 * (i - half) + 1));
    },
  },
  {
    trap: 'no rotation',
    model: 'llama-base',
    spoil: ({ d }) => mapNodes(d, 'softmaxAttention', ({ rope: _, ...node }) => node),
  },
  {
    trap: 'llama3 scaling left out',
    model: 'llama3-rope',
    spoil: ({ config: { scaling: _, ...config } }) => describe(config),
  },
  {
    trap: 'llama3 scaling as one factor for all frequencies',
    model: 'llama3-rope',
    spoil: ({ config }) => describe({ ...config, scaling: { type: 'linear', factor: 8 } }),
  },
  {
    trap: 'llama3 scaling without the smooth middle',
    model: 'llama3-rope',
    spoil: ({ d, config }) =>
      mapNodes(d, 'softmaxAttention', (node) => {
        const plain = rope(config.headDim, config.theta).frequencies;
        const frequencies = node.rope!.frequencies.map((scaled, i) => (scaled < plain[i]! ? plain[i]! / 8 : scaled));
        return { ...node, rope: { ...node.rope!, frequencies } };
      }),
  },
  {
    trap: 'scale of hidden / heads where head_dim is given',
    model: 'llama-gqa',
    spoil: ({ d, config }) =>
      mapNodes(d, 'softmaxAttention', (node) => ({ ...node, scale: (config.hidden / config.heads) ** -0.5 })),
  },
  {
    trap: 'query head h reads kv head h mod kvHeads',
    model: 'llama-gqa',
    // Order the heads so that the right reading of the new order is the wrong reading of the old one.
    spoil: (scene) => {
      const { heads, kvHeads } = scene.config;
      return reorderHeads(
        scene,
        range(heads).sort((a, b) => (a % kvHeads) - (b % kvHeads) || a - b),
      );
    },
  },
  {
    trap: 'gate_proj and up_proj exchanged',
    model: 'llama-base',
    spoil: ({ d, config }) =>
      exchange(
        d,
        range(config.layers).map((layer) => [`layers.${layer}.mlp.gate`, `layers.${layer}.mlp.up`] as const),
      ),
  },
  {
    trap: 'gelu in place of silu',
    model: 'llama-base',
    spoil: ({ d }) => mapNodes(d, 'activate', (node) => ({ ...node, fn: 'gelu' })),
  },
  {
    trap: 'eps left out of the norms',
    model: 'llama-base',
    spoil: ({ d }) => mapNodes(d, 'rmsNorm', (node) => ({ ...node, eps: 0 })),
    between: [5e-4, 5e-3],
  },
  {
    trap: 'eps of another generation, 1e-6',
    model: 'llama-base',
    spoil: ({ d }) => mapNodes(d, 'rmsNorm', (node) => ({ ...node, eps: 1e-6 })),
    between: [5e-4, 5e-3],
  },
  {
    trap: 'an output projection of its own where it is tied',
    model: 'llama-tied',
    spoil: async ({ d, config: { hidden }, read }) => {
      const table = await read('embed');
      const other = mapNodes(d, 'linear', (node) => (node.weight === 'embed' ? { ...node, weight: 'head' } : node));
      const weights = { ...other.weights, head: other.weights.embed! };
      return override({ ...other, weights }, { head: permuteRows(table, hidden, (row) => (row === 0 ? 1 : row)) });
    },
  },
];

const all = [1e-2, Number.POSITIVE_INFINITY] as const;

group.skipIf(missing)('traps of Llama', () => {
  it.each(traps)('$model: $trap', async ({ between: [least, most] = all, ...trap }) => {
    const error = await missBy(trap);
    expect(error).toBeGreaterThan(least);
    expect(error).toBeLessThan(most);
  });
});

// The machinery that spoils, used so that it must not matter: were it broken, every trap would be "noticed".
const controls: Trap<LlamaConfig>[] = [
  {
    trap: 'query heads in another order within their groups',
    model: 'llama-gqa',
    spoil: (scene) => reorderHeads(scene, [2, 0, 1, 4, 5, 3]),
  },
  {
    trap: 'pairs of features turned round in q, k and the frequencies',
    model: 'llama-base',
    spoil: async (scene) => {
      const { headDim } = scene.config;
      const turned = (i: number) => (i < headDim / 2 ? headDim / 2 - 1 - i : (3 * headDim) / 2 - 1 - i);
      return mapNodes(await permuteHeads(scene, turned), 'softmaxAttention', (node) => ({
        ...node,
        rope: { ...node.rope!, frequencies: [...node.rope!.frequencies].reverse() },
      }));
    },
  },
];

group.skipIf(missing)('changes to Llama that are none', () => {
  it.each(controls)('$model: $trap', async (control) => {
    expect(await missBy(control)).toBeLessThan(1e-4);
  });
});

/** Features of every head of q and k in the order `from`. */
async function permuteHeads(
  { d, config: { layers, hidden, headDim }, read }: Scene<LlamaConfig>,
  from: (feature: number) => number,
): Promise<ModelDescription> {
  const values: Record<string, Float32Array> = {};
  for (const layer of range(layers)) {
    for (const name of [`layers.${layer}.attention.query`, `layers.${layer}.attention.key`]) {
      values[name] = permuteRows(await read(name), hidden, (row) => row - (row % headDim) + from(row % headDim));
    }
  }
  return override(d, values);
}

/** Query heads, and what the output projection reads of them, in another order. */
async function reorderHeads(
  { d, config: { layers, hidden, headDim, heads }, read }: Scene<LlamaConfig>,
  order: readonly number[],
): Promise<ModelDescription> {
  const from = (feature: number) => order[Math.floor(feature / headDim)]! * headDim + (feature % headDim);
  const width = heads * headDim;
  const values: Record<string, Float32Array> = {};
  for (const layer of range(layers)) {
    const [query, output] = [`layers.${layer}.attention.query`, `layers.${layer}.attention.output`];
    values[query] = permuteRows(await read(query), hidden, from);
    const o = await read(output); // [hidden, width]
    values[output] = o.map((_, i) => o[Math.floor(i / width) * width + from(i % width)]!);
  }
  return override(d, values);
}
