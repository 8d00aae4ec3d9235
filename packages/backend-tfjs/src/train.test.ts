import { referenceBackend } from '@dsla/reference';
import {
  convState,
  type DualForm,
  dualState,
  f32,
  isTrainingDevice,
  kvState,
  type NodeOf,
  scanState,
  type TrainingDevice,
  type Weight,
} from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { expectClose } from '../test/helpers.js';
import { normals, sourceOf, type Tape, tape, type Writer } from '../test/tapes.js';
import { tfjsBackend } from './index.js';

const rows = 2;
const width = 8;
const rope = { frequencies: [1, 0.1], rotaryDim: 4 };
const op = 'dualLinearAttention';

/** Values that depend on weights and on the input x [N, 8], which is positive. */
function projected(t: Writer, name: string, out: number, bias = false, data?: Float32Array): number {
  const x = t.push({ op: 'input', name: 'x', width });
  const own = bias ? { bias: t.weight(`${name}.bias`, [out]) } : {};
  return t.push({ op: 'linear', x, weight: t.weight(name, [out, width], data), ...own });
}

const positive = (name: string, count: number) => normals(name, count, 0.2).map(Math.abs);

function dual(form: Omit<DualForm, 'kvHeads' | 'headDim' | 'temperature'>, heads: number, extra: object = {}): Tape {
  const full: DualForm = { ...form, kvHeads: 2, headDim: 4, temperature: 4 };
  return tape((t) => {
    // The largest feature must not change within a difference: positive q and k, and a first feature that leads.
    const leading = (name: string, of: number) =>
      normals(name, of * 12, 0.2).map((value, i) => (i % 12 < 4 ? Math.abs(value) + 1 : value));
    if (full.featureMap) {
      t.weight(full.featureMap.query, [heads, 3, 4], leading('featureQ', heads));
      t.weight(full.featureMap.key, [2, 3, 4], leading('featureK', 2));
    }
    if (full.exact) t.weight(full.exact.logWeight, [heads]);
    const q = projected(t, 'q', heads * 4, false, positive('q', heads * 4 * width));
    const k = projected(t, 'k', 8, false, positive('k', 8 * width));
    const v = projected(t, 'v', 8);
    const gates = projected(t, 'gates', full.states * 2 * (full.gate === 'vector' ? 4 : 1), true);
    const mix = t.weight('mix', [heads, full.states]);
    const state = t.state(dualState('dual', full, 3));
    if ('outputNorm' in extra) t.weight('norm', [4]);
    return t.push({ op, q, k, v, gates, mix, state, heads, scale: 0.5, form: full, ...extra });
  });
}

const featureMap = { kind: 'exp', query: 'featureQ', key: 'featureK' } as const;
/** The largest exact score changes with the window: golden gradients cover it, differences want a window of one. */
const own = { window: 1, sinks: 0, logWeight: 'logWeight' };
const exact = { window: 5, sinks: 2, logWeight: 'logWeight' };
const activation = (fn: NodeOf<'activate'>['fn']) =>
  tape((t) => t.push({ op: 'activate', x: projected(t, 'w', 8), fn }));

const attention = (window?: { size: number; sinks: number }) =>
  tape((t) => {
    const [q, k, v] = [projected(t, 'q', 16), projected(t, 'k', 8), projected(t, 'v', 8)] as const;
    const shape = { heads: 4, kvHeads: 2, headDim: 4, scale: 0.5, rope, ...(window && { window }) };
    return t.push({ op: 'softmaxAttention', q, k, v, state: t.state(kvState('kv', shape)), ...shape });
  });

/** Tokens a row, and a tape. */
const cases: Readonly<Record<string, [tokens: number, tape: Tape]>> = {
  'linear and rmsNorm': [
    5,
    tape((t) => t.push({ op: 'rmsNorm', x: projected(t, 'w', 6, true), weight: t.weight('norm', [6]), eps: 1e-5 })),
  ],
  'a low-rank change, x + U D x': [
    5,
    tape((t) => {
      const x = projected(t, 'w', 8);
      const down = t.push({ op: 'linear', x, weight: t.weight('down', [2, 8]) });
      return t.push({ op: 'add', a: x, b: t.push({ op: 'linear', x: down, weight: t.weight('up', [8, 2]) }) });
    }),
  ],
  'add, mul (of a value with itself), concat, slice': [
    5,
    tape((t) => {
      const [a, b] = [projected(t, 'a', 6), projected(t, 'b', 6)];
      const sum = t.push({ op: 'add', a, b });
      const square = t.push({ op: 'mul', a: sum, b: sum });
      const both = t.push({ op: 'concat', a: square, b: t.push({ op: 'mul', a, b }) });
      return t.push({ op: 'slice', x: both, from: 2, to: 9 });
    }),
  ],
  silu: [5, activation('silu')],
  gelu: [5, activation('gelu')],
  softplus: [5, activation('softplus')],
  logSigmoid: [5, activation('logSigmoid')],
  'embed, tokens that repeat, a tied head': [
    7,
    tape((t) => {
      const x = t.push({ op: 'embed', table: t.weight('table', [11, 6]) });
      return t.push({ op: 'linear', x, weight: 'table' });
    }),
  ],
  lastToken: [4, tape((t) => t.push({ op: 'lastToken', x: projected(t, 'w', 6) }))],
  'softmaxAttention, two blocks of queries': [140, attention()],
  'softmaxAttention with a window': [140, attention({ size: 7, sinks: 3 })],
  'published form, vector gates': [
    70,
    dual({ states: 2, gate: 'vector', normaliser: false, ropeInState: false }, 4, {
      outputNorm: { weight: 'norm', eps: 1e-5 },
    }),
  ],
  'scalar gates without normaliser, rope in the state': [
    70,
    dual({ states: 2, gate: 'scalar', normaliser: false, ropeInState: true, rope }, 2),
  ],
  'one state with normaliser': [
    70,
    dual({ states: 1, gate: 'scalar', normaliser: true, ropeInState: false, featureMap }, 4),
  ],
  'foldable form': [
    140,
    dual({ states: 2, gate: 'scalar', normaliser: true, ropeInState: false, featureMap, rope, exact: own }, 4),
  ],
  'foldable form, row shorter than the window': [
    4,
    dual({ states: 2, gate: 'scalar', normaliser: true, ropeInState: false, featureMap, rope, exact }, 4),
  ],
  causalConv: [
    6,
    tape((t) => {
      const [weight, bias] = [t.weight('taps', [6, 1, 4]), t.weight('bias', [6])];
      return t.push({
        op: 'causalConv',
        x: projected(t, 'w', 6),
        weight,
        bias,
        state: t.state(convState('conv', 6, 4)),
      });
    }),
  ],
  'selectiveScan over several segments': [
    70,
    tape((t) => {
      const dt = t.push({ op: 'activate', x: projected(t, 'dt', 8), fn: 'softplus' });
      const [x, b, c] = [projected(t, 'x', 8), projected(t, 'b', 6), projected(t, 'c', 6)] as const;
      const [logA, d] = [t.weight('logA', [2, 4, 3]), t.weight('d', [2, 4])];
      return t.push({ op: 'selectiveScan', x, dt, b, c, logA, d, heads: 2, state: t.state(scanState('scan', 8, 3)) });
    }),
  ],
};

/** Ids, input and the gradient by the output that all cases share. */
function batchOf(tokens: number) {
  const ids = Int32Array.from({ length: rows * tokens }, (_, i) => (i * 7) % 11);
  return { rows, tokens, ids, x: normals('x', rows * tokens * width, 1).map(Math.abs) };
}

/** The output of a tape on the reference device, rows from empty states, with some weights replaced. */
async function referenceOutput(
  one: Tape,
  tokens: number,
  replaced: Record<Weight, Float32Array>,
): Promise<Float32Array> {
  await using device = await referenceBackend.open();
  const { ids, x } = batchOf(tokens);
  using layer = await device.compile(one.graph, sourceOf(one, replaced));
  using input = device.upload(f32([rows * tokens, width], x));
  const stores = Object.fromEntries(
    one.graph.states.map((spec) => [spec.name, device.createState(spec, rows, tokens)] as const),
  );
  const slots = Array.from({ length: rows }, (_, slot) => ({ slot, past: 0, count: tokens }));
  using step = device.beginStep({ ids, rows: slots }, { x: input });
  step.run(layer, stores);
  await step.submit();
  return (await device.download(step.value('y'))).data as Float32Array;
}

describe.each(['cpu', 'wasm'])('training on %s', (engine) => {
  let device: TrainingDevice;
  beforeAll(async () => {
    const opened = await tfjsBackend.open({ extra: { engine } });
    if (!isTrainingDevice(opened)) throw new Error('must train');
    device = opened;
  });
  afterAll(async () => await device[Symbol.asyncDispose]());

  it.each(Object.keys(cases))('%s: gradients are the differences of the reference', async (name) => {
    const [tokens, one] = cases[name]!;
    const names = Object.keys(one.weights);
    const { x, ids } = batchOf(tokens);
    using layer = await device.compileTrainable(one.graph, sourceOf(one), names);
    let dy: Float32Array = new Float32Array();
    const inputs = { x: f32([rows * tokens, width], x) };
    const { byWeight } = await layer.gradients({ rows, tokens, ids, inputs }, [
      {
        kind: 'host',
        outputs: ['y'],
        of: ({ y }) => {
          dy = normals('dy', y!.data.length, 1);
          return { loss: 0, gradients: { y: f32(y!.shape, dy) } };
        },
      },
    ]);
    const loss = async (replaced: Record<Weight, Float32Array>) =>
      (await referenceOutput(one, tokens, replaced)).reduce((sum, y, i) => sum + y * dy[i]!, 0);
    for (const weight of names) {
      // Along one direction: a central difference of fourth order, since outputs are rounded to float32.
      const { data } = one.weights[weight]!;
      const direction = normals(`direction ${weight}`, data.length, data.length ** -0.5);
      const along = async (h: number) => await loss({ [weight]: data.map((w, i) => w + h * direction[i]!) });
      const h = 0.05;
      const [a, b, c, d] = [await along(h), await along(-h), await along(2 * h), await along(-2 * h)];
      const want = (8 * (a - b) - (c - d)) / (12 * h);
      const gradient = byWeight[weight]!.data as Float32Array;
      const got = gradient.reduce((sum, g, i) => sum + g * direction[i]!, 0);
      const size = Math.hypot(...gradient) * data.length ** -0.5; // of a typical direction
      expect(Math.abs(got - want), `${weight}: ${got}, differences give ${want}`).toBeLessThan(1e-3 * size + 1e-4);
    }
  });

  it('forward is what the reference computes', async () => {
    const tokens = 140;
    const one = dual({ states: 2, gate: 'scalar', normaliser: true, ropeInState: false, featureMap, rope, exact }, 4);
    const { x, ids } = batchOf(tokens);
    using layer = await device.compileTrainable(one.graph, sourceOf(one), []);
    const { y } = layer.forward({ rows, tokens, ids, inputs: { x: f32([rows * tokens, width], x) } });
    expectClose('y', (await device.download(y!)).data, await referenceOutput(one, tokens, {}));
    y![Symbol.dispose]();
  });

  it('gates of any strength give finite gradients', async () => {
    for (const gate of ['vector', 'scalar'] as const) {
      const one = dual({ states: 2, gate, normaliser: false, ropeInState: false }, 2);
      const bias = one.weights['gates.bias']!.data.map((_, i) => [-1e5, 1e5, -300, 0][i % 4]!);
      const tokens = 70;
      using layer = await device.compileTrainable(one.graph, sourceOf(one, { 'gates.bias': bias }), ['q', 'gates']);
      const target = f32([rows * tokens, 8], new Float32Array(rows * tokens * 8));
      const inputs = { x: f32([rows * tokens, width], batchOf(tokens).x) };
      const { loss, byWeight } = await layer.gradients({ rows, tokens, inputs }, [
        { kind: 'mse', output: 'y', target },
      ]);
      const y = await referenceOutput(one, tokens, { 'gates.bias': bias });
      const want = y.reduce((sum, value) => sum + value * value, 0) / y.length;
      expect(Math.abs(loss / want - 1)).toBeLessThan(1e-4);
      for (const { data } of Object.values(byWeight)) expect(data.every(Number.isFinite)).toBe(true);
      expect(Math.hypot(...byWeight.q!.data)).toBeGreaterThan(0);
    }
  });
});
