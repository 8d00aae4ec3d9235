import { type DType, elementCount, stateBytes, weightsOf } from '@dsla/spec';
import { expect, describe as group, it } from 'vitest';
import { describe, type MixerOptions, type ModelDescription, parseConfig, tapesOf } from './index.js';

const llama2 = {
  model_type: 'llama',
  vocab_size: 32000,
  hidden_size: 4096,
  intermediate_size: 11008,
  num_hidden_layers: 32,
  num_attention_heads: 32,
};
const configs = {
  'Llama-2-7B': llama2,
  'Llama-3.1-8B': { ...llama2, vocab_size: 128256, intermediate_size: 14336, num_key_value_heads: 8 },
  'TinyLlama-1.1B': {
    ...llama2,
    hidden_size: 2048,
    intermediate_size: 5632,
    num_hidden_layers: 22,
    num_key_value_heads: 4,
  },
  'Zamba-7B': {
    ...llama2,
    model_type: 'zamba',
    hidden_size: 3712,
    intermediate_size: 14848,
    num_hidden_layers: 76,
    num_attention_heads: 16,
  },
};

/** Tensors that a checkpoint in one layout holds, with their shapes. */
function tensorsOf(
  { weights }: ModelDescription,
  layout: (names: readonly string[]) => string,
): Map<string, readonly number[]> {
  return new Map(Object.values(weights).map(({ tensors, shape, stored }) => [layout(tensors), stored ?? shape]));
}
const current = (names: readonly string[]): string => names[0]!;

/** Bytes a token of all KV caches, at two bytes a number. */
function cacheBytes(description: ModelDescription, compute: DType = 'f16'): number {
  const states = description.segments.flatMap(({ versions }) => versions.default.states);
  return states.filter(({ kind }) => kind === 'kv').reduce((sum, spec) => sum + stateBytes(spec, 1, compute), 0);
}

group('the published models', () => {
  // Parameters and cache bytes as their authors and the hub count them.
  it.each([
    ['Llama-2-7B', 6_738_415_616, 524_288],
    ['Llama-3.1-8B', 8_030_261_248, 131_072],
    ['TinyLlama-1.1B', 1_100_048_384, 22_528],
    ['Zamba-7B', 7_232_490_496, 386_048],
  ] as const)('%s has %d parameters and %d bytes of cache a token', (name, parameters, bytes) => {
    const description = describe(parseConfig(configs[name]));
    const counts = [...tensorsOf(description, current).values()].map(elementCount);
    expect(counts.reduce((sum, count) => sum + count, 0)).toBe(parameters);
    expect(cacheBytes(description)).toBe(bytes);
  });

  // The hub lists the sizes of Zamba's index file before and after its tensors were renamed.
  it.each([
    ['current', 62_587, current],
    ['old', 65_166, (names: readonly string[]) => names.filter((name) => name !== 'lm_head.weight').at(-1)!],
  ] as const)("the names of Zamba's %s layout fill an index file of %d bytes", (_, bytes, layout) => {
    const names = [...tensorsOf(describe(parseConfig(configs['Zamba-7B'])), layout).keys()].sort();
    const weight_map = Object.fromEntries(names.map((name) => [name, 'model-00001-of-00003.safetensors']));
    const index = { metadata: { total_size: 2 * 7_232_490_496 }, weight_map };
    expect(names.length).toBe(784);
    expect(`${JSON.stringify(index, null, 2)}\n`.length).toBe(bytes);
  });

  it('Llama-2-7B has the 291 tensors of its checkpoint', () => {
    const names = tensorsOf(describe(parseConfig(llama2)), current);
    expect(names.size).toBe(291);
    expect(names.get('model.layers.31.mlp.down_proj.weight')).toEqual([4096, 11008]);
    expect(names.get('lm_head.weight')).toEqual([32000, 4096]);
  });
});

const small = {
  ...llama2,
  vocab_size: 11,
  hidden_size: 16,
  intermediate_size: 20,
  num_hidden_layers: 2,
  num_attention_heads: 4,
};
const all: Record<string, MixerOptions> = {
  near: { kind: 'window', size: 8, sinks: 2 },
  dsla: { kind: 'dual' },
  keyed: { kind: 'dual', gateSource: 'key', states: 1, outputNorm: true },
  dense: { kind: 'dual', gateSource: 'hidden', gate: 'vector' },
  paper: { kind: 'published' },
};

group('segments', () => {
  const d = describe(parseConfig(small), { mixers: all });

  it('are cut so that a mixer changes the attention only, unless it has projections of its own', () => {
    const versions = d.segments.map(({ name, layer, versions: found }) => [name, layer, Object.keys(found)]);
    expect(versions).toEqual([
      ['embed', undefined, ['default']],
      ...[0, 1].flatMap((layer) => [
        [`layers.${layer}.project`, layer, ['default', 'paper']],
        [`layers.${layer}.attention`, layer, ['default', 'near', 'dsla', 'keyed', 'dense', 'paper']],
        [`layers.${layer}.output`, layer, ['default', 'paper']],
      ]),
    ]);
    expect(d).toMatchObject({ convertible: 2, mixers: Object.keys(all) });
    expect(Object.keys(d.folds)).toEqual(['dsla', 'keyed']);
    expect(d.folds.dsla!.map(({ states }) => states.map(({ name }) => name))).toEqual([
      ['layers.0.kv', 'layers.0.dsla'],
      ['layers.1.kv', 'layers.1.dsla'],
    ]);
  });

  it('write the normed input only where a mixer reads it', () => {
    const outputs = (mixers: Record<string, MixerOptions>, version = 'default') => {
      const [, project] = describe(parseConfig(small), { mixers }).segments;
      return project!.versions[version]!.nodes.flatMap((node) => (node.op === 'output' ? [node.name] : []));
    };
    expect(outputs({})).toEqual(['q', 'k', 'v']);
    expect(outputs({ dsla: all.dsla!, paper: all.paper! })).toEqual(['q', 'k', 'v']);
    expect(outputs({ paper: all.paper! }, 'paper')).toEqual(['q', 'k', 'v', 'a']);
    expect(outputs({ dense: all.dense! })).toEqual(['q', 'k', 'v', 'a']);
  });

  it('have states of their own for every mixer, and every weight that they name has a place', () => {
    const names = d.segments.flatMap(({ versions: found }) =>
      Object.values(found).flatMap(({ states }) => states.map(({ name }) => name)),
    );
    expect(new Set(names).size).toBe(names.length);
    const used = new Set(tapesOf(d).flatMap((graph) => weightsOf(graph)));
    expect([...used].sort()).toEqual(Object.keys(d.weights).sort());
  });

  it('have biases where the configuration says so', () => {
    const biased = describe(parseConfig({ ...small, attention_bias: true, mlp_bias: true }));
    const used = new Set(tapesOf(biased).flatMap((graph) => weightsOf(graph)));
    const found = Object.entries(biased.weights).filter(([name]) => name.endsWith('.bias') && used.has(name));
    expect(found.map(([, { tensors, shape }]) => [tensors[0], shape]).slice(0, 7)).toEqual([
      ['model.layers.0.self_attn.q_proj.bias', [16]],
      ['model.layers.0.self_attn.k_proj.bias', [16]],
      ['model.layers.0.self_attn.v_proj.bias', [16]],
      ['model.layers.0.self_attn.o_proj.bias', [16]],
      ['model.layers.0.mlp.gate_proj.bias', [20]],
      ['model.layers.0.mlp.up_proj.bias', [20]],
      ['model.layers.0.mlp.down_proj.bias', [16]],
    ]);
  });

  it('of Zamba cannot be exchanged', () => {
    const zamba = describe(parseConfig({ ...small, model_type: 'zamba' }), { mixers: all });
    expect(zamba).toMatchObject({ convertible: 0, mixers: [], folds: {} });
    expect(zamba.segments.every(({ versions: found }) => Object.keys(found).length === 1)).toBe(true);
  });
});

group('mixer options', () => {
  it.each([
    ['gateBias must have one entry a state, 2', { kind: 'dual', gateBias: [6] }],
    ['features must be an integer of at least 1', { kind: 'dual', features: 0 }],
    ['window must be an integer of at least 0', { kind: 'dual', window: -1 }],
    ['outputRank must be an integer from 0 to the width of o, 16, got 17', { kind: 'dual', outputRank: 17 }],
    ['outputRank must be an integer from 0 to the width of o, 16, got 1.5', { kind: 'dual', outputRank: 1.5 }],
    ['sinks must be an integer of at least 0', { kind: 'dual', sinks: -1 }],
    ['states must be an integer of at least 1', { kind: 'dual', states: 0 }],
    ['temperature must be positive', { kind: 'dual', temperature: 0 }],
    ['vector gates cannot be combined with a feature map', { kind: 'dual', gate: 'vector', featureMap: 'exp' }],
    ['a normaliser needs the positive features', { kind: 'dual', featureMap: 'none', normaliser: true }],
    ['an exact part needs a normaliser', { kind: 'dual', featureMap: 'none', window: 8 }],
    ['window must be an integer of at least 1', { kind: 'window', size: 0, sinks: 0 }],
  ] as [string, MixerOptions][])('refuses: %s', (message, options) => {
    expect(() => describe(parseConfig(small), { mixers: { m: options } })).toThrow(message);
  });

  it('refuses the published form where queries are grouped', () => {
    const grouped = parseConfig({ ...small, num_key_value_heads: 2 });
    expect(() => describe(grouped, { mixers: { paper: { kind: 'published' } } })).toThrow(
      expect.objectContaining({
        code: 'E_UNSUPPORTED',
        message: expect.stringContaining('as many kv heads as query heads, 4, got 2'),
      }),
    );
  });

  it.each(['default', 'a.b', '', '1'])('refuses the name %j', (name) => {
    expect(() => describe(parseConfig(small), { mixers: { [name]: { kind: 'dual' } } })).toThrow(
      "mixer's name must be",
    );
  });
});
