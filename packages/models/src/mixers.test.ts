import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { referenceBackend } from '@dsla/reference';
import { f32, type StateStore } from '@dsla/spec';
import { openCheckpoint } from '@dsla/weights';
import { expect, describe as group, it } from 'vitest';
import { distance, missing, openGolden } from '../test/golden.js';
import { reader, renamed, type Stored } from '../test/reader.js';
import { type Runner, runner } from '../test/run.js';
import {
  bindWeights,
  describe,
  type MixerOptions,
  type ModelDescription,
  parseConfig,
  planAt,
  type TensorReader,
} from './index.js';
import { normal } from './initial.js';

const ops = fileURLToPath(new URL('../../conformance/golden/ops/', import.meta.url));

interface Case {
  readonly heads: number;
  readonly kvHeads?: number;
  readonly headDim: number;
  readonly tokens: number;
  readonly states: number;
  readonly window: number;
  readonly sinks: number;
  readonly features: number;
  readonly ropeInState: boolean;
  readonly cut: number;
}

/** A golden operator: its settings, its tensors. */
async function openOp(name: string) {
  await using file = await openCheckpoint(`${ops}${name}.safetensors`);
  const tensors: Record<string, Stored> = {};
  for (const [tensor, { shape }] of file.tensors) {
    tensors[tensor] = { shape, data: (await file.readFloats(tensor, { as: 'f32' })).data as Float32Array };
  }
  return { settings: JSON.parse(file.metadata.case!) as Case, tensors };
}

/** A Llama of one layer around a mixer. */
function around(hidden: number, { heads, kvHeads = heads, headDim }: Case, mixer: MixerOptions): ModelDescription {
  const config = parseConfig({
    model_type: 'llama',
    vocab_size: 3,
    hidden_size: hidden,
    intermediate_size: 2,
    num_hidden_layers: 1,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
  });
  return describe(config, { mixers: { m: mixer } });
}

/** What the rest of the model needs, of no interest here. */
function zeros({ weights }: ModelDescription): Record<string, Stored> {
  return Object.fromEntries(
    Object.values(weights).map(({ tensors, shape }) => [
      tensors[0]!,
      { shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)) },
    ]),
  );
}

/** Runs the attention version of the mixer on rows of q, k, v, a, in pieces. */
async function attention(d: ModelDescription, weights: TensorReader, values: Record<string, Stored>, cuts: number[]) {
  const graph = d.segments[2]!.versions.m!;
  const device = await referenceBackend.open();
  const layer = await device.compile(graph, bindWeights(d, weights));
  const [spec] = graph.states;
  const store: StateStore = device.createState(spec!, 1, 200);
  const outputs: Float32Array[] = [];
  for (const [index, from] of cuts.slice(0, -1).entries()) {
    const to = cuts[index + 1]!;
    const buffers = Object.fromEntries(
      Object.entries(values).map(([name, { shape, data }]) => {
        const width = shape[1]!;
        return [name, device.upload(f32([to - from, width], data.slice(from * width, to * width)))];
      }),
    );
    const rows = [{ slot: 0, past: from, count: to - from }];
    using step = device.beginStep({ ids: new Int32Array(to - from), rows }, buffers);
    step.run(layer, { [spec!.name]: store });
    await step.submit();
    outputs.push((await device.download(step.value('o'))).data as Float32Array);
  }
  const [state] = await store.export(0);
  return { o: Float32Array.from(outputs.flatMap((part) => [...part])), state: state!.data as Float32Array };
}

group.skipIf(!existsSync(`${ops}dsla-published-h1x16.safetensors`))('golden mechanisms', () => {
  it.each(['dsla-published-h1x16', 'dsla-published-h3x8'])('%s, under the tensor names of its code', async (name) => {
    const { settings, tensors } = await openOp(name);
    const hidden = tensors.x!.shape[1]!;
    const d = around(hidden, settings, { kind: 'published' });
    const layer = Object.fromEntries(
      Object.entries(tensors)
        .filter(([tensor]) => /_proj|^alpha/.test(tensor) && !tensor.startsWith('d.'))
        .map(([tensor, stored]) => [`model.layers.0.self_attn.${tensor}`, stored]),
    );
    const rest = renamed(reader(zeros(d)), (tensor) => (tensor.startsWith('layers.0.m.') ? undefined : tensor));
    const weights = both(reader(layer), rest);
    const values = { q: tensors.q!, k: tensors.k!, v: tensors.v!, a: tensors.x! };
    const whole = await attention(d, weights, values, [0, settings.tokens]);
    expect(distance(whole.o, tensors.mixed!.data)).toBeLessThan(1e-5);
    expect(distance(whole.state, tensors.state!.data)).toBeLessThan(1e-5);
    const halves = await attention(d, weights, values, [0, settings.cut, settings.tokens]);
    expect(distance(halves.o, tensors.mixed!.data)).toBeLessThan(1e-5);
    // Traps: the two gates exchanged, the mix turned round.
    const gates = { ...layer };
    for (const part of ['weight', 'bias']) {
      gates[`model.layers.0.self_attn.gk_proj.${part}`] = layer[`model.layers.0.self_attn.gk_proj2.${part}`]!;
      gates[`model.layers.0.self_attn.gk_proj2.${part}`] = layer[`model.layers.0.self_attn.gk_proj.${part}`]!;
    }
    const alpha = layer['model.layers.0.self_attn.alpha_list']!;
    const mix = { ...alpha, data: alpha.data.slice().reverse() };
    for (const wrong of [gates, { ...layer, 'model.layers.0.self_attn.alpha_list': mix }]) {
      const { o } = await attention(d, both(reader(wrong), rest), values, [0, settings.tokens]);
      expect(distance(o, tensors.mixed!.data)).toBeGreaterThan(1e-2);
    }
  });

  // Those whose mix is one a head, as ours is.
  it.each([
    'foldable-gqa-s2-w1-t37',
    'foldable-gqa-s2-w8-t150',
    'foldable-gqa-s2-w8-t37-rope',
    'foldable-mha-s1-w8-t37',
    'foldable-mha-s2-w8-t37',
    'foldable-mha-s2-w8-t5',
  ])('%s', async (name) => {
    const { settings, tensors } = await openOp(name);
    const { states, window, sinks, features, ropeInState, tokens } = settings;
    const width = tensors.gates!.shape[1]!;
    // Gates from the hidden input, which is given the golden gates: the identity passes them on.
    const shape = { states, window, sinks, features, ropeInState };
    const d = around(width, settings, { kind: 'dual', gateSource: 'hidden', ...shape });
    const identity = Float32Array.from({ length: width * width }, (_, i) => (i % (width + 1) === 0 ? 1 : 0));
    const weights = reader({
      ...zeros(d),
      'layers.0.m.gate.weight': { shape: [width, width], data: identity },
      'layers.0.m.mix': tensors.mix!,
      'layers.0.m.log_weight': tensors.logWeight!,
      'layers.0.m.feature.query': tensors.featureQ!,
      'layers.0.m.feature.key': tensors.featureK!,
    });
    const values = { q: tensors.q!, k: tensors.k!, v: tensors.v!, a: tensors.gates! };
    for (const cuts of [
      [0, tokens],
      [0, 3, 4, tokens],
    ]) {
      const { o, state } = await attention(d, weights, values, cuts);
      expect(distance(o, tensors.o!.data)).toBeLessThan(1e-5);
      expect(distance(state, tensors.state!.data)).toBeLessThan(1e-4);
    }
  });
});

function both(first: TensorReader, second: TensorReader): TensorReader {
  return {
    tensors: new Map([...second.tensors, ...first.tensors]),
    readFloats: (name, options) => (first.tensors.has(name) ? first : second).readFloats(name, options),
  };
}

group.skipIf(missing)('mixers in a golden Llama', () => {
  const tokens = 18;

  async function open(mixers: Record<string, MixerOptions>, tuned = true) {
    const golden = await openGolden('llama-gqa');
    const d = describe(golden.config, { mixers });
    // A conversion far from its start, so that no term is zero or one.
    const own = Object.entries(d.weights).filter(([, { mixer }]) => tuned && mixer !== undefined);
    const conversion = reader(
      Object.fromEntries(
        own.map(([name, { shape }], seed) => [
          name,
          {
            shape,
            data: normal(
              shape.reduce((a, b) => a * b, 1),
              0.5,
              seed,
            ),
          },
        ]),
      ),
    );
    const weights = bindWeights(d, golden.checkpoint, conversion);
    const fresh = (): Promise<Runner> => runner(d, weights, tokens);
    return {
      golden,
      conversion,
      fresh,
      ids: await golden.ids(),
      [Symbol.asyncDispose]: () => golden[Symbol.asyncDispose](),
    };
  }

  it('a window as long as the text is full attention', async () => {
    await using scene = await open({
      wide: { kind: 'window', size: tokens, sinks: 0 },
      narrow: { kind: 'window', size: 4, sinks: 1 },
    });
    const logits = await scene.golden.floats('logits');
    expect(distance(await (await scene.fresh()).feed(scene.ids, ['wide', 'wide']), logits)).toBeLessThan(1e-4);
    expect(distance(await (await scene.fresh()).feed(scene.ids, ['narrow', 'narrow']), logits)).toBeGreaterThan(1e-2);
  });

  it('with the weight of its states at zero the foldable form is the window', async () => {
    const [window, sinks] = [4, 2];
    await using scene = await open(
      { dsla: { kind: 'dual', window, sinks, logWeight: -1e4 }, window: { kind: 'window', size: window, sinks } },
      false,
    );
    const dsla = await (await scene.fresh()).feed(scene.ids, ['dsla', 'dsla']);
    expect(distance(dsla, await (await scene.fresh()).feed(scene.ids, ['window', 'window']))).toBeLessThan(1e-5);
  });

  it('a plan mixes versions layer by layer', async () => {
    await using scene = await open({ dsla: { kind: 'dual', window: 4, sinks: 2 } });
    const run = async (level: number) => (await scene.fresh()).feed(scene.ids, planAt([1, 0], level, 'dsla', 2));
    const levels = [await run(0), await run(1), await run(2)] as const;
    expect(distance(levels[0], await scene.golden.floats('logits'))).toBeLessThan(1e-4);
    expect(distance(levels[0], levels[1])).toBeGreaterThan(1e-2);
    expect(distance(levels[1], levels[2])).toBeGreaterThan(1e-2);
  });

  it('a low-rank change of the output projection is the merged projection', async () => {
    const options = { kind: 'dual', window: 4, sinks: 2 } as const;
    await using changed = await open({ dsla: { ...options, outputRank: 3 } });
    const { checkpoint, config } = changed.golden;
    const read = async (of: TensorReader, name: string) =>
      (await of.readFloats(name, { as: 'f32' })).data as Float32Array;
    /** W (1 + U D), written out: W [hidden, width], U [width, 3], D [3, width]. */
    const merged = async (layer: number): Promise<[string, Stored]> => {
      const name = `model.layers.${layer}.self_attn.o_proj.weight`;
      const { shape } = checkpoint.tensors.get(name)!;
      const width = shape[1]!;
      const [w, up, down] = await Promise.all([
        read(checkpoint, name),
        read(changed.conversion, `layers.${layer}.dsla.output.up`),
        read(changed.conversion, `layers.${layer}.dsla.output.down`),
      ]);
      const data = w.map((value, at) => {
        const [row, column] = [Math.floor(at / width), at % width];
        for (let k = 0; k < width; k++)
          for (let r = 0; r < 3; r++) value += w[row * width + k]! * up[k * 3 + r]! * down[r * width + column]!;
        return value;
      });
      return [name, { shape, data }];
    };
    const base = both(reader(Object.fromEntries([await merged(0), await merged(1)])), checkpoint);
    const plain = describe(config, { mixers: { dsla: options } });
    const logits = async (of: TensorReader) => {
      const run = await runner(plain, bindWeights(plain, of, changed.conversion), tokens);
      return run.feed(changed.ids, ['dsla', 'dsla']);
    };
    const got = await (await changed.fresh()).feed(changed.ids, ['dsla', 'dsla']);
    expect(distance(got, await logits(base))).toBeLessThan(1e-5);
    expect(distance(got, await logits(checkpoint))).toBeGreaterThan(1e-2);
  });

  const foldable: [string, MixerOptions][] = [
    ['a changed output projection', { kind: 'dual', window: 4, sinks: 2, outputRank: 3 }],
    ['gates from values', { kind: 'dual', window: 4, sinks: 2 }],
    ['gates from keys', { kind: 'dual', window: 4, sinks: 2, gateSource: 'key' }],
    ['no window', { kind: 'dual', window: 0, gateSource: 'key' }],
    ['three states, rotated, normed', { kind: 'dual', window: 3, states: 3, ropeInState: true, outputNorm: true }],
    ['vector gates', { kind: 'dual', gate: 'vector' }],
  ];
  it.each(foldable)('a folded cache is a prefilled state: %s', async (_, options) => {
    await using scene = await open({ dsla: options });
    for (const layer of [0, 1]) {
      const plan = planAt([layer, 1 - layer], 1, 'dsla', 2);
      const prefilled = await scene.fresh();
      await prefilled.feed(scene.ids.subarray(0, 13), plan);
      const folded = await scene.fresh();
      await folded.feed(scene.ids.subarray(0, 13));
      await folded.fold('dsla', layer);
      const states = [
        await prefilled.state(`layers.${layer}.dsla`),
        await folded.state(`layers.${layer}.dsla`),
      ] as const;
      const size = Math.hypot(...(states[0][0]!.data as Float32Array));
      expect(size).toBeGreaterThan(0.1);
      expect(distance(states[1][0]!.data as Float32Array, states[0][0]!.data as Float32Array)).toBeLessThan(
        1e-5 * size,
      );
      if (layer === 1) {
        // Nothing above it has seen the change: the two go on alike.
        const rest = scene.ids.subarray(13);
        expect(distance(await folded.feed(rest, plan), await prefilled.feed(rest, plan))).toBeLessThan(1e-4);
      }
    }
  });
});
