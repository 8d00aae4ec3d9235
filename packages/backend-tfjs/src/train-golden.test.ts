import { type Golden, goldenNames, readGolden } from '@dsla/conformance';
import { convState, dualState, f32, isTrainingDevice, kvState, scanState, type TrainingDevice } from '@dsla/spec';
import * as tf from '@tensorflow/tfjs-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { expectClose } from '../test/helpers.js';
import { eye, sourceOf, type Tape, tape, transpose } from '../test/tapes.js';
import { tfjsBackend } from './index.js';

// Gradients of every mechanism against those of PyTorch. Operands are weights of linear nodes that read the identity, so that
// their gradients can be asked for; the loss is sum(y * do).

interface Question {
  readonly tape: Tape;
  /** Tokens in a row. */
  readonly tokens: number;
  /** [tokens, width] */
  readonly dy: Float32Array;
  /** Golden tensors [tokens, width] that are free operands. */
  readonly operands: readonly string[];
  /** Golden tensors that are weights, as named in the tape. */
  readonly weights: readonly string[];
}

const questions: Readonly<Record<string, (golden: Golden) => Question>> = {
  rmsNorm: (golden) => {
    const { tokens, width, eps } = golden.settings as Record<string, number>;
    const { data, free, weight } = reader(golden, tokens!);
    return {
      tape: tape((t) => t.push({ op: 'rmsNorm', x: free(t, 'x', width!), weight: weight(t, 'weight'), eps: eps! })),
      tokens: tokens!,
      dy: data('do'),
      operands: ['x'],
      weights: ['weight'],
    };
  },
  softmaxAttention: (golden) => {
    const { heads, kvHeads, headDim, tokens, scale, window } = golden.settings as Record<string, number> & {
      window: { size: number; sinks: number } | null;
    };
    const { data, free } = reader(golden, tokens!);
    const shape = { heads: heads!, kvHeads: kvHeads!, headDim: headDim!, scale: scale!, ...(window && { window }) };
    return {
      tape: tape((t) => {
        const [q, k, v] = [free(t, 'q', heads! * headDim!), free(t, 'k'), free(t, 'v')];
        return t.push({ op: 'softmaxAttention', q, k, v, state: t.state(kvState('kv', shape)), ...shape });
      }),
      tokens: tokens!,
      dy: data('do'),
      operands: ['q', 'k', 'v'],
      weights: [],
    };
  },
  causalConv: (golden) => {
    const { tokens, channels, kernel } = golden.settings as Record<string, number>;
    const { data, free, weight } = reader(golden, tokens!);
    return {
      tape: tape((t) => {
        const state = t.state(convState('conv', channels!, kernel!));
        return t.push({
          op: 'causalConv',
          x: free(t, 'x'),
          weight: weight(t, 'weight'),
          bias: weight(t, 'bias'),
          state,
        });
      }),
      tokens: tokens!,
      dy: data('do'),
      operands: ['x'],
      weights: ['weight', 'bias'],
    };
  },
  // The loss has a term in the last state: n more tokens with dt = 0 read it, one column each.
  selectiveScan: (golden) => {
    const { tokens, channels, heads, n } = golden.settings as Record<string, number>;
    const { data, weight } = reader(golden, tokens!);
    const all = tokens! + n!;
    const longer = (name: string, tail: (i: number) => number) => {
      const own = data(name);
      const width = own.length / tokens!;
      return Float32Array.from({ length: all * width }, (_, i) => own[i] ?? tail(i - own.length));
    };
    return {
      tape: tape((t) => {
        const [x, raw, b, c] = [
          t.free(
            'x',
            all,
            channels!,
            longer('x', () => 0),
          ),
          t.free(
            'dtRaw',
            all,
            channels!,
            longer('dtRaw', () => -1e4),
          ),
          t.free(
            'b',
            all,
            heads! * n!,
            longer('b', () => 0),
          ),
          t.free(
            'c',
            all,
            heads! * n!,
            longer('c', (i) => (i % n! === Math.floor(i / (heads! * n!)) ? 1 : 0)),
          ),
        ] as const;
        const dt = t.push({ op: 'activate', x: raw, fn: 'softplus' });
        const state = t.state(scanState('scan', channels!, n!));
        const [logA, d] = [weight(t, 'logA'), weight(t, 'd')];
        return t.push({ op: 'selectiveScan', x, dt, b, c, logA, d, state, heads: heads! });
      }),
      tokens: all,
      dy: Float32Array.of(...data('do'), ...transpose(data('dstate'), channels!, n!)),
      operands: ['x', 'dtRaw', 'b'],
      weights: ['logA', 'd'],
    };
  },
  dslaPublished: (golden) => {
    const { tokens, heads, headDim, scale, temperature } = golden.settings as Record<string, number>;
    const { data, free, weight } = reader(golden, tokens!);
    const kvHeads = heads!;
    const shape = { states: 2, kvHeads, headDim: headDim!, gate: 'vector', temperature: temperature! } as const;
    const form = { ...shape, normaliser: false, ropeInState: false };
    return {
      tape: tape((t) => {
        const x = free(t, 'x');
        const project = (name: string, input: number, bias?: string) =>
          t.push({
            op: 'linear',
            x: input,
            weight: weight(t, `${name}.weight`),
            ...(bias !== undefined && { bias: weight(t, bias) }),
          });
        const [q, k, v] = [project('q_proj', x), project('k_proj', x), project('v_proj', x)];
        const [a, b] = [project('gk_proj', x, 'gk_proj.bias'), project('gk_proj2', x, 'gk_proj2.bias')];
        const gates = t.push({ op: 'concat', a, b });
        const mix = t.weight('alpha_list', [1, 2], data('alpha_list'));
        const state = t.state(dualState('dual', form));
        const op = 'dualLinearAttention';
        return project('o_proj', t.push({ op, q, k, v, gates, mix, state, heads: heads!, scale: scale!, form }));
      }),
      tokens: tokens!,
      dy: data('do'),
      operands: ['x'],
      weights: [...golden.tensors.keys()].filter((name) => /^(\w+_proj2?\.(weight|bias)|alpha_list)$/.test(name)),
    };
  },
  foldable: (golden) => {
    const { tokens, heads, kvHeads, headDim, features, states, window, sinks, scale, temperature, theta } =
      golden.settings as Record<string, number>;
    const { data, free, weight } = reader(golden, tokens!);
    const frequencies = Array.from({ length: headDim! / 2 }, (_, i) => theta! ** ((-2 * i) / headDim!));
    return {
      tape: tape((t) => {
        const form = {
          states: states!,
          kvHeads: kvHeads!,
          headDim: headDim!,
          gate: 'scalar',
          temperature: temperature!,
          featureMap: { kind: 'exp', query: weight(t, 'featureQ'), key: weight(t, 'featureK') },
          normaliser: true,
          rope: { frequencies, rotaryDim: headDim! },
          ropeInState: golden.settings.ropeInState as boolean,
          exact: { window: window!, sinks: sinks!, logWeight: weight(t, 'logWeight') },
        } as const;
        const [q, k, v, gates] = [free(t, 'q'), free(t, 'k'), free(t, 'v'), free(t, 'gates')] as const;
        const state = t.state(dualState('dual', form, features!));
        const op = 'dualLinearAttention';
        return t.push({ op, q, k, v, gates, mix: weight(t, 'mix'), state, heads: heads!, scale: scale!, form });
      }),
      tokens: tokens!,
      dy: data('do'),
      operands: tokens! < 100 ? ['q', 'k', 'v', 'gates'] : ['gates'],
      weights: ['mix', 'logWeight', 'featureQ', 'featureK'],
    };
  },
};

function reader({ tensors }: Golden, tokens: number) {
  const data = (name: string) => tensors.get(name)!.data as Float32Array;
  type Writer = Parameters<Parameters<typeof tape>[0]>[0];
  return {
    data,
    free: (t: Writer, name: string, width = data(name).length / tokens) => t.free(name, tokens, width, data(name)),
    weight: (t: Writer, name: string) => t.weight(name, tensors.get(name)!.shape, data(name)),
  };
}

/** Cases that begin with an empty state, as training does. */
const cases = goldenNames('ops').filter((file) => {
  const { settings } = readGolden(`ops/${file}`);
  return String(settings.op) in questions && !settings.past && !settings.initialState;
});

describe.each(['cpu', 'wasm'])('gradients of PyTorch on %s', (engine) => {
  let device: TrainingDevice;
  beforeAll(async () => {
    const opened = await tfjsBackend.open({ extra: { engine } });
    if (!isTrainingDevice(opened)) throw new Error('must train');
    device = opened;
  });
  afterAll(async () => await device[Symbol.asyncDispose]());

  it.each(cases)('%s', async (file) => {
    const golden = readGolden(`ops/${file}`);
    const { tape, tokens, dy, operands, weights } = questions[String(golden.settings.op)]!(golden);
    const before = tf.memory().numTensors;
    {
      using layer = await device.compileTrainable(tape.graph, sourceOf(tape), [...operands, ...weights]);
      const inputs = { eye: f32([tokens, tokens], eye(tokens)) };
      const { byWeight } = await layer.gradients({ rows: 1, tokens, inputs }, [
        {
          kind: 'host',
          outputs: ['y'],
          of: ({ y }) => ({ loss: 0, gradients: { y: f32(y!.shape, dy) } }),
        },
      ]);
      const want = (name: string) => golden.tensors.get(`d.${name}`)!.data;
      for (const name of operands) {
        const { shape, data } = byWeight[name]!;
        const got = transpose(data as Float32Array, shape[0]!, shape[1]!);
        expectClose(name, got.subarray(0, want(name).length), want(name), 2e-5);
      }
      for (const name of weights) expectClose(name, byWeight[name]!.data, want(name), 2e-5);
    }
    expect(tf.memory().numTensors - before).toBeLessThanOrEqual(2); // a table of rotations stays with the device
  });
});
