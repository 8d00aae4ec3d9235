import { toFloat16 } from '@dsla/spec';
import { expect, describe as group, it } from 'vitest';
import { distance, missing, openGolden } from '../test/golden.js';
import { reader, renamed, type Stored } from '../test/reader.js';
import { runner } from '../test/run.js';
import { bindWeights, describe, parseConfig, type TensorReader } from './index.js';

const config = parseConfig({
  model_type: 'llama',
  vocab_size: 5,
  hidden_size: 4,
  intermediate_size: 6,
  num_hidden_layers: 1,
  num_attention_heads: 2,
});

/** All tensors of a description, counted up so that every element differs. */
function filled(d = describe(config)): Record<string, Stored> {
  let next = 0;
  const entries = Object.values(d.weights).map(({ tensors, shape, stored = shape }) => {
    const data = Float32Array.from({ length: stored.reduce((a, b) => a * b, 1) }, () => next++);
    return [tensors[0]!, { shape: stored, data }] as const;
  });
  return Object.fromEntries(entries);
}

group('bindWeights', () => {
  it('gives specs and values of weights by their names in the tapes', async () => {
    const tensors = filled();
    const down = 'model.layers.0.mlp.down_proj.weight';
    const weights = bindWeights(
      describe(config),
      reader({ ...tensors, [down]: { ...tensors[down]!, storage: 'bf16' } }),
    );
    expect(weights.spec('layers.0.mlp.down')).toEqual({ storage: 'bf16', shape: [4, 6] });
    const want = tensors[down]!.data;
    expect(await weights.read('layers.0.mlp.down', 'f32')).toEqual({ dtype: 'f32', shape: [4, 6], data: want });
    expect((await weights.read('layers.0.mlp.down', 'f16')).data).toEqual(toFloat16(want));
    expect(() => weights.spec('layers.1.mlp.down')).toThrow(expect.objectContaining({ code: 'E_CONFIG' }));
  });

  it('lists every missing or mismatched tensor in one error', () => {
    const { 'lm_head.weight': _, 'model.norm.weight': norm, ...rest } = filled();
    const embed = 'model.embed_tokens.weight';
    const wrong = {
      ...rest,
      'model.norm.weight': { ...norm!, storage: 'i32' },
      [embed]: { ...rest[embed]!, shape: [4, 5] },
    };
    expect(() => bindWeights(describe(config), reader(wrong))).toThrow(
      expect.objectContaining({
        code: 'E_CONFIG',
        details: {
          problems: [
            'model.embed_tokens.weight must be [5, 4], got [4, 5]',
            'model.norm.weight must be f32, f16 or bf16, got i32',
            'lm_head.weight is missing',
          ],
        },
      }),
    );
  });

  it('shortens a long list in the message, not in the details', () => {
    let caught: unknown;
    try {
      bindWeights(describe(parseConfig({ ...raw, num_hidden_layers: 4 })), reader(filled()));
    } catch (error) {
      caught = error;
    }
    expect(caught).toMatchObject({ message: expect.stringMatching(/27 tensor\(s\).*and 15 more/) });
    expect((caught as { details: { problems: string[] } }).details.problems.length).toBe(27);
  });

  it('returns what the model does not use, without stored rotary frequencies', () => {
    const extra = { shape: [1], data: new Float32Array(1) };
    const { unexpected } = bindWeights(
      describe(config),
      reader({
        ...filled(),
        'model.layers.0.self_attn.rotary_emb.inv_freq': { shape: [1], data: Float32Array.of(99) },
        'model.layers.1.mlp.up_proj.weight': extra,
        value_head: extra,
      }),
    );
    expect(unexpected).toEqual(['model.layers.1.mlp.up_proj.weight', 'value_head']);
  });

  it('takes a tied embedding from either name', async () => {
    const tied = describe(parseConfig({ ...raw, tie_word_embeddings: true }));
    const { 'lm_head.weight': head, 'model.embed_tokens.weight': embed, ...rest } = filled();
    const only = bindWeights(tied, reader({ ...rest, 'lm_head.weight': head! }));
    expect((await only.read('embed', 'f32')).data).toEqual(head!.data);
    const both = bindWeights(tied, reader({ ...rest, 'lm_head.weight': head!, 'model.embed_tokens.weight': embed! }));
    expect((await both.read('embed', 'f32')).data).toEqual(embed!.data);
    expect(both.unexpected).toEqual([]);
  });
});

const raw = {
  model_type: 'llama',
  vocab_size: 5,
  hidden_size: 4,
  intermediate_size: 6,
  num_hidden_layers: 1,
  num_attention_heads: 2,
};

group('a conversion', () => {
  const d = describe(config, { mixers: { m: { kind: 'dual', window: 2 }, p: { kind: 'published', seed: 3 } } });

  it('starts untuned, in float32 and float16', async () => {
    const base = filled(describe(config));
    const weights = bindWeights(d, reader(base));
    expect([...weights.untuned].sort()).toEqual(
      Object.entries(d.weights)
        .flatMap(([name, { initial }]) => (initial ? [name] : []))
        .sort(),
    );
    const read = async (name: string) => [...(await weights.read(`layers.0.${name}`, 'f32')).data];
    expect(await read('m.gate.bias')).toEqual([6, 6, 0, 0]); // far heads, then near heads
    expect(new Set(await read('m.gate.weight'))).toEqual(new Set([0]));
    expect(await read('m.log_weight')).toEqual([-7, -7]);
    expect(await read('m.feature.key')).toEqual([1, 0, 0, 1, 1, 0, 0, 1]);
    expect((await weights.read('layers.0.m.log_weight', 'f16')).data).toEqual(toFloat16(Float32Array.of(-7, -7)));
    // The published form begins with the base's projections.
    expect(await read('p.query')).toEqual([...base['model.layers.0.self_attn.q_proj.weight']!.data]);
    expect(await read('p.far.weight')).toEqual([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]);
    expect(weights.spec('layers.0.p.mix')).toEqual({ storage: 'f32', shape: [1, 2] });
  });

  it('is read from its own file first, which changes weights of mixers only', async () => {
    const base = filled(describe(config));
    const own = { shape: [4, 4], data: new Float32Array(16).fill(0.5) };
    const q = 'model.layers.0.self_attn.q_proj.weight'; // as the reference code names the query of its own
    const conversion = reader({
      'layers.0.m.mix': { shape: [2, 2], data: Float32Array.of(1, 2, 3, 4) },
      'model.layers.0.self_attn.alpha_list': { shape: [2], data: Float32Array.of(5, 6) },
      [q]: own,
      'layers.0.p.key': own,
      'layers.9.m.mix': own,
    });
    const weights = bindWeights(d, reader(base), conversion);
    const read = async (name: string) => (await weights.read(name, 'f32')).data;
    expect(await read('layers.0.m.mix')).toEqual(Float32Array.of(1, 2, 3, 4));
    expect(await weights.read('layers.0.p.mix', 'f32')).toMatchObject({ shape: [1, 2], data: Float32Array.of(5, 6) });
    expect(await read('layers.0.p.query')).toEqual(own.data);
    expect(await read('layers.0.p.key')).toEqual(own.data);
    expect(await read('layers.0.attention.query')).toEqual(base[q]!.data);
    expect(weights.untuned).not.toContain('layers.0.m.mix');
    expect(weights.untuned).toContain('layers.0.m.gate.bias');
    expect(weights.unexpected).toEqual(['layers.9.m.mix']);
  });

  it('is refused where a shape is wrong', () => {
    const conversion = reader({ 'layers.0.m.mix': { shape: [2, 3], data: new Float32Array(6) } });
    expect(() => bindWeights(d, reader(filled(describe(config))), conversion)).toThrow(
      'layers.0.m.mix must be [2, 2], got [2, 3]',
    );
  });
});

group.skipIf(missing)('layouts of Zamba', () => {
  /** Distance of the golden logits when the checkpoint is spelled another way. */
  async function miss(spell: (name: string) => string | undefined): Promise<number> {
    await using golden = await openGolden('zamba-a');
    const d = describe(golden.config);
    const spelled: TensorReader = renamed(golden.checkpoint, spell);
    expect(spelled.tensors.has('model.layers.2.shared_transf.self_attn.q_proj.weight')).toBe(false);
    const weights = bindWeights(d, spelled);
    expect(weights.unexpected).toEqual([]);
    return distance(await (await runner(d, weights, 18)).feed(await golden.ids()), await golden.floats('logits'));
  }

  it('the shared block under another hybrid layer', async () => {
    expect(await miss((name) => name.replace('layers.2.shared_transf', 'layers.7.shared_transf'))).toBeLessThan(1e-4);
  });

  const old = (name: string): string =>
    name
      .replace('layers.2.shared_transf', 'block')
      .replace(/layers\.(\d+)\.linear/, (_, layer) => `linear_layers.${layer === '2' ? 0 : 1}`)
      .replace('.mamba_decoder.', '.')
      .replace('model.layers.', 'model.mamba_layers.');
  const swapped = (name: string): string =>
    name.replace(/(gate|up)_proj/, (_, part) => (part === 'gate' ? 'up_proj' : 'gate_proj'));

  it('the old names, with gate and up exchanged', async () => {
    expect(await miss((name) => swapped(old(name)))).toBeLessThan(1e-4);
  });

  it('the old names without the exchange are another model', async () => {
    expect(await miss(old)).toBeGreaterThan(1e-2);
  });
});
