import type { Plan } from '@dsla/models';
import { parseOrder } from '@dsla/policy';
import type { TrainingDevice } from '@dsla/spec';
import { openCheckpoint } from '@dsla/weights';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { tinyBase } from '../test/folders.js';
import { data, heldOut, options, recipe, trainer } from '../test/tiny.js';
import { lastRowEntropy } from './entropy.js';
import { evaluate } from './evaluate.js';
import {
  orderAtRandom,
  orderByDepth,
  orderByEntropy,
  orderByKl,
  orderByRecall,
  orderGreedily,
  type SensitivityOptions,
} from './sensitivity.js';
import { openStudent, type Student } from './student.js';
import { openWindows } from './windows.js';

let device: TrainingDevice;
let student: Student;
let settings: SensitivityOptions;
const short = { ...recipe, match: { ...recipe.match, steps: 2 } };

beforeAll(async () => {
  device = await trainer();
  student = await openStudent(await tinyBase(), { device, mixer: { name: 'foldable', options } });
  settings = {
    recipe: short,
    windows: await openWindows(data, student.tokenizer, { tokens: 24, seed: 0 }),
    heldOut: await (await openWindows(heldOut, student.tokenizer, { tokens: 24, seed: 0 })).take(2),
  };
});
afterAll(async () => {
  await student[Symbol.asyncDispose]();
  await device[Symbol.asyncDispose]();
});

describe('orders by measurement', () => {
  it('by KL: what each layer costs alone, least first', async () => {
    const order = await orderByKl(student, settings);
    expect(parseOrder(JSON.parse(JSON.stringify(order)), 'order.json', 2)).toEqual(order);
    const cost = order.evidence!.map(({ kl }) => kl as number);
    expect(cost[order.order[0]!]).toBeLessThanOrEqual(cost[order.order[1]!]!);
    const plan = ['foldable', 'default'];
    expect((await evaluate(student, plan, settings.heldOut, 24)).kl.value).toBe(cost[0]);
  });

  it('greedily: the next layer is the cheapest on the hybrid so far', async () => {
    const { order, evidence } = await orderGreedily(student, settings);
    const kl = async (plan: Plan) => (await evaluate(student, plan, settings.heldOut, 24)).kl.value;
    const alone = [await kl(['foldable', 'default']), await kl(['default', 'foldable'])];
    expect(order[0]).toBe(alone[0]! <= alone[1]! ? 0 : 1);
    expect(evidence!.map(({ level, kl }) => [level, kl])).toEqual([
      [1, Math.min(...alone)],
      [2, await kl(['foldable', 'foldable'])],
    ]);
  });

  it('by recall: layers that lose it last, however little KL they cost', async () => {
    const cheap = (await orderByKl(student, settings)).order[0]!;
    const recall = async (plan: Plan) => (plan[cheap] === 'foldable' ? 0.2 : 0.99);
    const order = await orderByRecall(student, recall, settings);
    expect(order).toMatchObject({ order: [1 - cheap, cheap], keep: 1, metric: 'recall' });
    expect(order.evidence![cheap]!.recallLoss).toBeCloseTo(0.79, 9);
    expect((await orderByRecall(student, async () => 0.5, settings)).keep).toBe(0);
  });
});

describe('attention entropy', () => {
  const node = {
    op: 'softmaxAttention',
    q: 0,
    k: 1,
    v: 2,
    state: 's',
    heads: 2,
    kvHeads: 1,
    headDim: 2,
    scale: 1,
  } as const;

  it('is ln T where all tokens weigh the same, and 0 where one has it all', () => {
    const k = Float32Array.of(0, 0, 0, 0, 50, 0);
    expect(lastRowEntropy({ q: new Float32Array(12), k, tokens: 3 }, node)).toBeCloseTo(Math.log(3), 9);
    const q = Float32Array.of(0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0);
    expect(lastRowEntropy({ q, k, tokens: 3 }, node)).toBeCloseTo(0, 9);
    // Weights e^1 : 1 : 1 in both heads.
    const p = [Math.E, 1, 1].map((x) => x / (Math.E + 2));
    const want = -p.reduce((sum, x) => sum + x * Math.log(x), 0);
    const one = Float32Array.of(0, 0, 1, 0, 0, 0);
    expect(lastRowEntropy({ q, k: one, tokens: 3 }, node)).toBeCloseTo(want, 6);
  });

  it('of layer 0 is what its definition gives from the checkpoint', async () => {
    const { order, evidence, metric } = await orderByEntropy(student, settings);
    expect(metric).toBe('entropy');
    expect(evidence![order[0]!]!.entropy).toBeLessThanOrEqual(evidence![order[1]!]!.entropy as number);
    const windows = [settings.heldOut.subarray(0, 24), settings.heldOut.subarray(24)];
    const want = await Promise.all(windows.map((ids) => entropyOfLayer0(ids)));
    expect(evidence![0]!.entropy).toBeCloseTo((want[0]! + want[1]!) / 2, 4);
  });
});

describe('orders without measurement', () => {
  it('by depth and at random', () => {
    expect(orderByDepth(4).order).toEqual([0, 1, 2, 3]);
    expect(orderByDepth(4, 'top').order).toEqual([3, 2, 1, 0]);
    const random = orderAtRandom(20, 5);
    expect([...random.order].sort((a, b) => a - b)).toEqual(orderByDepth(20).order);
    expect(random.order).not.toEqual(orderByDepth(20).order);
    expect(orderAtRandom(20, 5)).toEqual(random);
    expect(orderAtRandom(20, 6).order).not.toEqual(random.order);
    expect(() => orderAtRandom(2, 0.5)).toThrow(/an integer, got 0.5/);
  });
});

/** Embedding, norm, q and k, rotation, softmax of the last row, in plain loops: hidden 48, 4 heads of 12, theta 10,000. */
async function entropyOfLayer0(ids: Int32Array): Promise<number> {
  await using file = await openCheckpoint(await tinyBase());
  const read = async (name: string) => (await file.readFloats(name, { as: 'f32' })).data;
  const table = await read('model.embed_tokens.weight');
  const norm = await read('model.layers.0.input_layernorm.weight');
  const [wq, wk] = [
    await read('model.layers.0.self_attn.q_proj.weight'),
    await read('model.layers.0.self_attn.k_proj.weight'),
  ];
  const project = (token: number, weight: typeof wq): number[] => {
    const x = Array.from({ length: 48 }, (_, i) => table[ids[token]! * 48 + i]!);
    const size = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / 48 + 1e-5);
    const y = Array.from({ length: 48 }, (_, row) =>
      x.reduce((sum, value, i) => sum + (weight[row * 48 + i]! * norm[i]! * value) / size, 0),
    );
    return y.map((value, at) => {
      const [head, i] = [Math.floor(at / 12), at % 12];
      const angle = token * 10000 ** (-(2 * (i % 6)) / 12);
      const pair = y[head * 12 + ((i + 6) % 12)]!;
      return value * Math.cos(angle) + (i < 6 ? -pair : pair) * Math.sin(angle);
    });
  };
  const last = project(ids.length - 1, wq);
  const keys = Array.from(ids, (_, token) => project(token, wk));
  let entropy = 0;
  for (let head = 0; head < 4; head++) {
    const powers = keys.map((key) => {
      let dot = 0;
      for (let i = head * 12; i < head * 12 + 12; i++) dot += last[i]! * key[i]!;
      return Math.exp(dot / Math.sqrt(12));
    });
    const total = powers.reduce((a, b) => a + b);
    for (const power of powers) entropy -= ((power / total) * Math.log(power / total)) / 4;
  }
  return entropy;
}
