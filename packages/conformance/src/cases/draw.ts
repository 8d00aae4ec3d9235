import { type Device, type DeviceBuffer, type Draw, f32, type Row } from '@dsla/spec';
import { expect } from 'vitest';
import type { Bench, Case } from '../case.js';
import { floats } from '../states.js';
import { tape, weightsOfTapes } from '../tape.js';
import { plannedWeights } from '../weights.js';

// Tokens drawn on the device, for backends whose steps can. Logits are what the case gives for the last token of every row.

const vocabulary = 600;
const head = tape('head', (t) => t.output('logits', t.push({ op: 'lastToken', x: t.input('x', vocabulary) })));
const embedding = tape('embedding', (t) =>
  t.output('x', t.push({ op: 'embed', table: t.weight('table', [vocabulary, 1], { data: counting() }) })),
);
const weights = plannedWeights(weightsOfTapes([embedding]));

function counting(): Float32Array {
  return Float32Array.from({ length: vocabulary }, (_, id) => id);
}

/** Exact in float16, so that no two become equal there. */
const logits = Float32Array.from(
  { length: vocabulary },
  (_, id) => Math.round(64 * (3 * Math.sin(id * 12.9898) + 2 * Math.cos(id * 78.2))) / 64,
);

/** Draws a token a row, and what the next step embeds when it takes the ids. */
async function drawn(
  device: Device,
  rows: readonly Float32Array[],
  draws: readonly Draw[],
): Promise<[number[], number[]]> {
  using layer = await device.compile(head.graph, weights);
  using next = await device.compile(embedding.graph, weights);
  using x = upload(device, rows);
  const batch = { ids: new Int32Array(rows.length), rows: rows.map((_, slot): Row => ({ slot, past: 0, count: 1 })) };
  using step = device.beginStep(batch, { x });
  step.run(layer, {});
  expect(step.draw, 'a step must be able to draw').toBeDefined();
  step.draw!(draws);
  const submitted = step.submit();
  const download = device.download(step.value('ids'));
  using after = device.beginStep(batch, { ids: step.value('ids') });
  for (const row of [...rows.keys()].reverse()) after.run(next, {}, [row]);
  await after.submit();
  await submitted;
  const ids = await download;
  expect(ids).toMatchObject({ dtype: 'i32', shape: [rows.length, 1] });
  return [[...ids.data], [...floats(await device.download(after.value('x')))]];
}

function upload(device: Device, rows: readonly Float32Array[]): DeviceBuffer {
  const data = new Float32Array(rows.length * vocabulary);
  rows.forEach((row, index) => {
    data.set(row, index * vocabulary);
  });
  return device.upload(f32([rows.length, vocabulary], data));
}

/** The reference's tokens, over all of [0, 1) but the neighbourhood of a border between two tokens. */
function asReference(name: string, option: Omit<Draw, 'uniform'>): Case {
  return {
    name: `draw > ${name}`,
    async run({ device, reference }: Bench) {
      const draws = Array.from({ length: 48 }, (_, index) => ({ ...option, uniform: (index + 0.5) / 48 }));
      const near = (shift: number) => draws.map((draw) => ({ ...draw, uniform: draw.uniform + shift }));
      const rows = draws.map(() => logits);
      const [got] = await drawn(device, rows, draws);
      const [below] = await drawn(reference, rows, near(-0.001));
      const [want] = await drawn(reference, rows, draws);
      const [above] = await drawn(reference, rows, near(0.001));
      const sure = want.flatMap((id, index) => (below[index] === id && above[index] === id ? [index] : []));
      expect(sure.length).toBeGreaterThan(0);
      expect(sure.map((index) => got[index])).toEqual(sure.map((index) => want[index]));
      for (const [index, id] of got.entries()) expect([below[index], want[index], above[index]]).toContain(id);
    },
  };
}

export const draw: readonly Case[] = [
  asReference('temperature 1', { temperature: 1 }),
  asReference('temperature and k', { temperature: 0.5, topK: 7 }),
  asReference('p', { temperature: 1.3, topP: 0.6 }),
  asReference('k, then p of what is left', { temperature: 2, topK: 40, topP: 0.8 }),
  asReference('a p that one token reaches', { temperature: 1, topP: 0.01 }),
  {
    name: 'draw > the first of the largest at temperature 0, into the next step',
    async run({ device }) {
      const tie = logits.map((x, id) => (id === 300 || id === 599 ? 9 : x));
      const low = logits.map((x) => x - 10);
      const greedy = { temperature: 0, uniform: 0.9 };
      const best = logits.indexOf(Math.max(...logits));
      const [ids, embedded] = await drawn(device, [tie, low, logits], [greedy, greedy, greedy]);
      expect(ids).toEqual([300, best, best]);
      expect(embedded).toEqual(ids);
    },
  },
  {
    name: 'draw > equals of the last of k and of p are kept',
    async run({ device }) {
      const uniforms = [0, 0.34, 0.67, 0.999];
      for (const [rest, cut] of [
        [8, { topK: 2 }],
        [-9, { topP: 0.5 }],
      ] as const) {
        const equal = Float32Array.from({ length: vocabulary }, (_, id) => (id < 3 ? 9 : rest));
        const draws = uniforms.map((uniform) => ({ temperature: 1, uniform, ...cut }));
        const [ids] = await drawn(
          device,
          uniforms.map(() => equal),
          draws,
        );
        expect(ids).toEqual([0, 1, 2, 2]);
      }
    },
  },
  {
    name: 'draw > no token where a logit is not a number',
    async run({ device }) {
      const broken = logits.map((x, id) => (id === 77 ? Number.NaN : x));
      const rows = [broken, logits, broken];
      const draws = [0, 0, 1].map((temperature) => ({ temperature, uniform: 0 }));
      using layer = await device.compile(head.graph, weights);
      using x = upload(device, rows);
      using step = device.beginStep(
        { ids: new Int32Array(3), rows: rows.map((_, slot) => ({ slot, past: 0, count: 1 })) },
        { x },
      );
      step.run(layer, {});
      step.draw!(draws);
      await step.submit();
      const ids = await device.download(step.value('ids'));
      expect([...ids.data]).toEqual([-1, logits.indexOf(Math.max(...logits)), -1]);
    },
  },
  {
    name: 'draw > needs logits, a draw a row, options in range',
    async run({ device }) {
      using step = device.beginStep({ ids: new Int32Array(1), rows: [{ slot: 0, past: 0, count: 1 }] });
      const refused = (rule: RegExp) =>
        expect.objectContaining({ code: 'E_INPUT', message: expect.stringMatching(rule) });
      expect(() => step.draw!([{ temperature: 0, uniform: 0 }])).toThrow(refused(/logits/));
      await expect(drawn(device, [logits], [{ temperature: -1, uniform: 0 }])).rejects.toEqual(refused(/range/));
      await expect(drawn(device, [logits], [])).rejects.toEqual(refused(/one draw a row/));
    },
  },
];
