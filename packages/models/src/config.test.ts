import { expect, describe as group, it } from 'vitest';
import { parseConfig, type ZambaConfig } from './index.js';

// Published configurations (the hub's config.json files).
const llama2 = {
  model_type: 'llama',
  vocab_size: 32000,
  hidden_size: 4096,
  intermediate_size: 11008,
  num_hidden_layers: 32,
  num_attention_heads: 32,
  max_position_embeddings: 4096,
  rms_norm_eps: 1e-5,
};
const scaling = {
  factor: 8,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
};
const llama31 = { ...llama2, vocab_size: 128256, intermediate_size: 14336, num_key_value_heads: 8 };
const zamba = {
  model_type: 'zamba',
  vocab_size: 32000,
  hidden_size: 3712,
  intermediate_size: 14848,
  num_hidden_layers: 76,
  num_attention_heads: 16,
  num_key_value_heads: 16,
  rope_theta: 10000, // in the file, not used
  sliding_window: null,
};

group('Llama', () => {
  it('fills in what old files leave out, or set to null', () => {
    const want = {
      architecture: 'llama',
      vocabulary: 32000,
      context: 4096,
      hidden: 4096,
      intermediate: 11008,
      layers: 32,
      heads: 32,
      kvHeads: 32,
      headDim: 128,
      normEps: 1e-5,
      tied: false,
      attentionBias: false,
      mlpBias: false,
      theta: 10000,
    };
    expect(parseConfig(llama2)).toEqual(want);
    const nulls = { num_key_value_heads: null, head_dim: null, rope_scaling: null, rope_theta: null, hidden_act: null };
    expect(parseConfig({ ...llama2, ...nulls, attention_bias: null, pretraining_tp: 1 })).toEqual(want);
  });

  it.each([
    ['rope_scaling', { rope_theta: 500000, rope_scaling: { rope_type: 'llama3', ...scaling } }],
    ['rope_scaling with type', { rope_theta: 500000, rope_scaling: { type: 'llama3', ...scaling } }],
    ['rope_parameters', { rope_parameters: { rope_type: 'llama3', rope_theta: 500000, ...scaling } }],
  ])('reads llama3 scaling from %s', (_, rope) => {
    expect(parseConfig({ ...llama31, ...rope })).toMatchObject({
      kvHeads: 8,
      theta: 500000,
      scaling: { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4, original: 8192 },
    });
  });

  it('reads linear scaling, explicit head_dim, biases and tying', () => {
    const settings = { head_dim: 64, attention_bias: true, mlp_bias: true, tie_word_embeddings: true };
    expect(parseConfig({ ...llama2, ...settings, rope_scaling: { type: 'linear', factor: 4 } })).toMatchObject({
      headDim: 64,
      attentionBias: true,
      mlpBias: true,
      tied: true,
      scaling: { type: 'linear', factor: 4 },
    });
  });

  it('reports every problem at once', () => {
    const wrong = {
      ...llama2,
      vocab_size: -1,
      intermediate_size: 0.5,
      num_hidden_layers: '32',
      num_key_value_heads: 5,
      hidden_act: 'gelu',
      rms_norm_eps: 0,
      rope_scaling: { rope_type: 'yarn', factor: 2 },
      quantization_config: { bits: 4 },
    };
    expect(() => parseConfig(wrong)).toThrow(
      expect.objectContaining({
        code: 'E_CONFIG',
        details: {
          problems: expect.arrayContaining([
            'vocab_size: must be an integer of at least 1',
            'intermediate_size: must be an integer of at least 1',
            'num_hidden_layers: must be an integer of at least 1',
            'num_key_value_heads: must divide num_attention_heads',
            'hidden_act: only silu is supported, got "gelu"',
            'rms_norm_eps: must be above 0',
            'rope_parameters.rope_type: only the types default, linear and llama3 are supported',
            'quantization_config: quantised checkpoints are not supported; choose one in float32, float16 or bfloat16',
          ]),
        },
      }),
    );
  });

  it.each([
    ['head_dim', { hidden_size: 4100, num_attention_heads: 32 }],
    ['head_dim', { head_dim: 63 }],
    ['rope_parameters.factor', { rope_scaling: { rope_type: 'llama3' } }],
    ['rope_parameters.partial_rotary_factor', { rope_parameters: { partial_rotary_factor: 0.5 } }],
    ['hidden_size', { hidden_size: null }],
  ])('refuses a wrong %s', (path, settings) => {
    expect(() => parseConfig({ ...llama2, ...settings })).toThrow(`${path}: `);
  });
});

group('Zamba', () => {
  it('fills in what the first upload leaves out', () => {
    expect(parseConfig(zamba)).toEqual({
      architecture: 'zamba',
      vocabulary: 32000,
      context: 4096,
      hidden: 3712,
      intermediate: 14848,
      layers: 76,
      hybrids: [2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73],
      heads: 16,
      kvHeads: 16,
      headDim: 464,
      channels: 7424,
      mambaHeads: 2,
      stateSize: 16,
      kernel: 4,
      convBias: true,
      timeRank: 232,
      activation: 'gelu',
      normEps: 1e-5,
      tied: true,
    });
  });

  it('reads listed layers, by the old and the new name of mamba', () => {
    const list = ['mamba', 'linear_attention', 'hybrid', 'hybrid'];
    const config = parseConfig({ ...zamba, num_hidden_layers: 4, layers_block_type: list }) as ZambaConfig;
    expect(config.hybrids).toEqual([2, 3]);
  });

  it.each([
    ['layers_block_type: must have num_hidden_layers entries', { layers_block_type: ['mamba'] }],
    ['layers_block_type.0: ', { layers_block_type: Array(76).fill('attention') }],
    ['hidden_act: only gelu or silu is supported, got "gelu_pytorch_tanh"', { hidden_act: 'gelu_pytorch_tanh' }],
    ['mamba_proj_bias: only false is supported', { mamba_proj_bias: true }],
    ['n_mamba_heads: must divide mamba_expand * hidden_size', { n_mamba_heads: 3 }],
    ['num_attention_heads: must divide 2 * hidden_size', { num_attention_heads: 15, num_key_value_heads: 15 }],
    ['mamba_d_conv: must be an integer of at least 2', { mamba_d_conv: 1 }],
  ])('refuses: %s', (message, settings) => {
    expect(() => parseConfig({ ...zamba, ...settings })).toThrow(message);
  });
});

it.each([null, 'llama', [], {}, { model_type: 'zamba2' }, { model_type: 'toString' }, { model_type: 1 }])(
  'an unknown architecture lists the known ones: %j',
  (json) => {
    expect(() => parseConfig(json)).toThrow(
      expect.objectContaining({
        code: 'E_UNSUPPORTED',
        message: expect.stringContaining('model_type must be one of llama, zamba, got '),
      }),
    );
  },
);
