import type { LayerGraph, Node, Value } from '@dsla/spec';
import { expect, describe as group, it } from 'vitest';
import {
  diagonal,
  exchange,
  insert,
  linearOf,
  mapNodes,
  mapTapes,
  nodeAt,
  override,
  permuteRows,
} from '../test/alter.js';
import { missing } from '../test/golden.js';
import { missBy, range, type Trap } from '../test/trap.js';
import type { ModelDescription, ZambaConfig } from './index.js';
import { rope } from './rope.js';

// Every known way to get Zamba subtly wrong, fallen into on purpose: the golden logits must notice.

const traps: Trap<ZambaConfig>[] = [
  {
    trap: 'in_proj split in halves',
    model: 'zamba-a',
    spoil: async ({ d, config, read }) => {
      const values: Record<string, Float32Array> = {};
      for (const layer of range(config.layers)) {
        const [x, z] = [`layers.${layer}.mamba.x`, `layers.${layer}.mamba.z`];
        const rows = [await read(x), await read(z)] as const;
        const width = config.hidden;
        const whole = Float32Array.from({ length: 2 * rows[0].length }, (_, i) => {
          const row = Math.floor(i / width);
          return rows[row % 2]![Math.floor(row / 2) * width + (i % width)]!;
        });
        values[x] = whole.slice(0, rows[0].length);
        values[z] = whole.slice(rows[0].length);
      }
      return override(d, values);
    },
  },
  {
    trap: 'x in the odd rows of in_proj',
    model: 'zamba-a',
    spoil: ({ d, config }) =>
      exchange(
        d,
        range(config.layers).map((layer) => [`layers.${layer}.mamba.x`, `layers.${layer}.mamba.z`] as const),
      ),
  },
  {
    trap: 'rotation in the attention',
    model: 'zamba-a',
    spoil: ({ d, config }) =>
      mapNodes(d, 'softmaxAttention', (node) => ({ ...node, rope: rope(config.headDim, 10000) })),
  },
  {
    trap: 'scale headDim^-0.5',
    model: 'zamba-a',
    spoil: ({ d, config }) => mapNodes(d, 'softmaxAttention', (node) => ({ ...node, scale: config.headDim ** -0.5 })),
  },
  {
    trap: 'one KV cache for all places of the shared block',
    model: 'zamba-a',
    spoil: ({ d }) =>
      mapTapes(
        mapNodes(d, 'softmaxAttention', (node) => ({ ...node, state: 'layers.2.kv' })),
        (graph) => ({
          ...graph,
          states: graph.states.map((spec) => (spec.kind === 'kv' ? { ...spec, name: 'layers.2.kv' } : spec)),
        }),
      ),
  },
  {
    trap: 'the embedding first in the concat',
    model: 'zamba-a',
    spoil: ({ d }) =>
      mapNodes(d, 'concat', (node, graph) => (isHybrid(graph, node) ? { ...node, a: node.b, b: node.a } : node)),
  },
  {
    trap: 'a residual around the shared attention',
    model: 'zamba-a',
    spoil: ({ d }) => mapTapes(d, (graph) => addBehind(graph, 'shared.attention.output', () => 0)),
  },
  {
    trap: 'a residual around the shared MLP',
    model: 'zamba-a',
    spoil: ({ d }) =>
      mapTapes(d, (graph) => addBehind(graph, 'shared.mlp.down', () => linearOf(graph, 'shared.attention.output')!)),
  },
  {
    trap: 'the residual h + t',
    model: 'zamba-a',
    spoil: ({ d }) =>
      mapTapes(d, (graph) => {
        if (linearOf(graph, 'shared.mlp.down') === undefined) return graph;
        const last = nodeAt(graph, 'add', -1);
        const a = nodeAt(graph, 'add', 0);
        return { ...graph, nodes: graph.nodes.map((node, index) => (index === last ? { ...(node as Add), a } : node)) };
      }),
  },
  {
    trap: 'hybrid positions off by one',
    model: 'zamba-a',
    spoil: ({ d }) => {
      const segments = [...d.segments];
      [segments[8], segments[9]] = [segments[9]!, segments[8]!]; // layers 7 and 8
      return { ...d, segments };
    },
  },
  {
    trap: 'gelu by its tanh approximation',
    model: 'zamba-a',
    spoil: ({ d, config }) => tanhGelu(d, config.intermediate),
    between: [5e-4, 5e-3],
  },
  {
    trap: 'silu in the shared MLP',
    model: 'zamba-a',
    spoil: ({ d }) => mapNodes(d, 'activate', (node) => (node.fn === 'gelu' ? { ...node, fn: 'silu' } : node)),
  },
  {
    trap: 'gate_proj and up_proj exchanged',
    model: 'zamba-a',
    spoil: ({ d }) => exchange(d, [['shared.mlp.gate', 'shared.mlp.up']]),
  },
  ...(['select', 'time', 'time.bias'] as const).map(
    (part): Trap<ZambaConfig> => ({
      trap: `${part} of another head`,
      model: 'zamba-b',
      spoil: ({ d, config }) =>
        exchange(
          d,
          range(config.layers).map(
            (layer) => [`layers.${layer}.mamba.${part}.0`, `layers.${layer}.mamba.${part}.1`] as const,
          ),
        ),
    }),
  ),
  {
    trap: 'x_proj rows in the order B, C, dt',
    model: 'zamba-a',
    spoil: ({ d, config: { timeRank, stateSize } }) =>
      mapNodes(d, 'slice', (node) => {
        if (node.to > timeRank + 2 * stateSize) return node; // a head of x
        if (node.from === 0 && node.to === timeRank)
          return { ...node, from: 2 * stateSize, to: 2 * stateSize + timeRank };
        return node.to - node.from === stateSize
          ? { ...node, from: node.from - timeRank, to: node.to - timeRank }
          : node;
      }),
  },
  {
    trap: 'B and C exchanged',
    model: 'zamba-a',
    spoil: ({ d }) => mapNodes(d, 'selectiveScan', (node) => ({ ...node, b: node.c, c: node.b })),
  },
  {
    trap: 'softplus before the time bias',
    model: 'zamba-a',
    spoil: async ({ d, config, read }) => {
      const values: Record<string, Float32Array> = { ones: diagonal(config.channels, 1) };
      for (const layer of range(config.layers)) {
        const parts = await Promise.all(
          range(config.mambaHeads).map((head) => read(`layers.${layer}.mamba.time.bias.${head}`)),
        );
        values[`late.${layer}`] = Float32Array.from(parts.flatMap((part) => [...part]));
      }
      const late = lateBias(mapNodes(d, 'linear', ({ bias: _, ...node }) => node));
      return override(late, values);
    },
  },
  {
    trap: 'no softplus',
    model: 'zamba-a',
    // silu is the nearest thing on the list that is not softplus
    spoil: ({ d }) => mapNodes(d, 'activate', (node) => (node.fn === 'softplus' ? { ...node, fn: 'silu' } : node)),
  },
  {
    trap: 'A = -exp(exp(A_log)): the exponential taken when loading, and again',
    model: 'zamba-a',
    spoil: async ({ d, config, read }) => {
      const values: Record<string, Float32Array> = {};
      for (const layer of range(config.layers)) {
        const name = `layers.${layer}.mamba.log_a`;
        values[name] = (await read(name)).map(Math.exp);
      }
      return override(d, values);
    },
  },
  {
    trap: 'D behind the gate',
    model: 'zamba-a',
    spoil: async ({ d, config, read }) => {
      const values: Record<string, Float32Array> = {};
      for (const layer of range(config.layers)) {
        const skip = await read(`layers.${layer}.mamba.d`);
        values[`layers.${layer}.mamba.d`] = new Float32Array(skip.length);
        values[`skip.${layer}`] = diagonal(config.channels, skip);
      }
      return override(lateSkip(d), values);
    },
  },
  {
    trap: 'convolution taps reversed',
    model: 'zamba-a',
    spoil: async ({ d, config, read }) => {
      const values: Record<string, Float32Array> = {};
      for (const layer of range(config.layers)) {
        const name = `layers.${layer}.mamba.conv`;
        values[name] = permuteRows(
          await read(name),
          1,
          (i) => i - (i % config.kernel) + config.kernel - 1 - (i % config.kernel),
        );
      }
      return override(d, values);
    },
  },
  {
    trap: 'no activation behind the convolution',
    model: 'zamba-a',
    spoil: ({ d }) => mapNodes(d, 'selectiveScan', (node, graph) => ({ ...node, x: nodeAt(graph, 'causalConv') })),
  },
];

const all = [1e-2, Number.POSITIVE_INFINITY] as const;

group.skipIf(missing)('traps of Zamba', () => {
  it.each(traps)('$model: $trap', async ({ between: [least, most] = all, ...trap }) => {
    const error = await missBy(trap);
    expect(error).toBeGreaterThan(least);
    expect(error).toBeLessThan(most);
  });
});

group.skipIf(missing)('changes to Zamba that are none', () => {
  // The machinery that spoils, used so that it must not matter: were it broken, the traps above would always be "noticed".
  it('an identity behind softplus, and nothing added behind the gate', async () => {
    const error = await missBy<ZambaConfig>({
      model: 'zamba-a',
      spoil: ({ d, config: { channels, layers } }) => {
        const values: Record<string, Float32Array> = { ones: diagonal(channels, 1) };
        for (const layer of range(layers)) {
          values[`late.${layer}`] = new Float32Array(channels);
          values[`skip.${layer}`] = diagonal(channels, 0);
        }
        return override(lateSkip(lateBias(d)), values);
      },
    });
    expect(error).toBeLessThan(1e-4);
  });
});

type Add = Extract<Node, { op: 'add' | 'mul' }>;

function isHybrid(graph: LayerGraph, node: Extract<Node, { op: 'concat' }>): boolean {
  const b = graph.nodes[node.b]!;
  return b.op === 'input' && b.name === 'embedded';
}

/** Adds another value behind the linear with a weight, where the tape has it. */
function addBehind(graph: LayerGraph, weight: string, other: () => Value): LayerGraph {
  const at = linearOf(graph, weight);
  return at === undefined ? graph : insert(graph, at, () => [{ op: 'add', a: at, b: other() }]);
}

/**
 * gelu(x) ~ x sigmoid(u) with u = 2 sqrt(2/pi) (x + 0.044715 x^3), from nodes that there are: sigmoid is the slope of softplus,
 * taken as a difference over 2^-10, good to 1e-7.
 */
function tanhGelu(d: ModelDescription, width: number): ModelDescription {
  const step = 2 ** -10;
  const first = 2 * Math.sqrt(2 / Math.PI);
  const spoiled = mapTapes(d, (graph) => {
    const gelu = graph.nodes.findIndex((node) => node.op === 'activate' && node.fn === 'gelu');
    if (gelu < 0) return graph;
    const { x } = graph.nodes[gelu] as { x: Value };
    return insert(graph, gelu, (n) => [
      { op: 'mul', a: x, b: x },
      { op: 'mul', a: n, b: x },
      { op: 'linear', x: n + 1, weight: 'cubic' },
      { op: 'linear', x, weight: 'first' },
      { op: 'add', a: n + 2, b: n + 3 },
      { op: 'linear', x: n + 4, weight: 'one', bias: 'below' },
      { op: 'linear', x: n + 4, weight: 'one', bias: 'above' },
      { op: 'activate', x: n + 5, fn: 'softplus' },
      { op: 'activate', x: n + 6, fn: 'softplus' },
      { op: 'linear', x: n + 7, weight: 'minus' },
      { op: 'linear', x: n + 8, weight: 'plus' },
      { op: 'add', a: n + 9, b: n + 10 },
      { op: 'mul', a: x, b: n + 11 },
    ]);
  });
  return override(spoiled, {
    cubic: diagonal(width, first * 0.044715),
    first: diagonal(width, first),
    one: diagonal(width, 1),
    below: new Float32Array(width).fill(-step / 2),
    above: new Float32Array(width).fill(step / 2),
    minus: diagonal(width, -1 / step),
    plus: diagonal(width, 1 / step),
  });
}

/** Adds `late.<layer>` behind the softplus of the time steps. */
function lateBias(d: ModelDescription): ModelDescription {
  return mapTapes(d, (graph) => {
    const softplus = graph.nodes.findIndex((node) => node.op === 'activate' && node.fn === 'softplus');
    if (softplus < 0) return graph;
    const bias = graph.name.replace('layers', 'late');
    return insert(graph, softplus, () => [{ op: 'linear', x: softplus, weight: 'ones', bias }]);
  });
}

/** Adds `skip.<layer>` times the input of the scan behind the gate. */
function lateSkip(d: ModelDescription): ModelDescription {
  return mapTapes(d, (graph) => {
    if (!graph.nodes.some(({ op }) => op === 'selectiveScan')) return graph;
    const { x } = graph.nodes[nodeAt(graph, 'selectiveScan')] as { x: Value };
    const gated = nodeAt(graph, 'mul', -1);
    return insert(graph, gated, (first) => [
      { op: 'linear', x, weight: graph.name.replace('layers', 'skip') },
      { op: 'add', a: gated, b: first },
    ]);
  });
}
