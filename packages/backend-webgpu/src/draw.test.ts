import { type Device, type Draw, f32, type LayerGraph, type WeightSource } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { webgpuBackend } from './index.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();

const vocabulary = 600; // more than two a thread
/** Logits that are what a caller gives for the last token of every row. */
const head: LayerGraph = {
  name: 'head',
  states: [],
  nodes: [
    { op: 'input', name: 'x', width: vocabulary },
    { op: 'lastToken', x: 0 },
    { op: 'output', name: 'logits', x: 1 },
  ],
};
const embedding: LayerGraph = {
  name: 'embed',
  states: [],
  nodes: [
    { op: 'embed', table: 'table' },
    { op: 'output', name: 'x', x: 0 },
  ],
};
const weights: WeightSource = {
  spec: () => ({ storage: 'f32', shape: [vocabulary, 1] }),
  read: async () =>
    f32(
      [vocabulary, 1],
      Float32Array.from({ length: vocabulary }, (_, id) => id),
    ),
};

/** The definition: sorts, cuts, and walks by id. Gives the ids that are left, with their probabilities. */
function distribution(logits: Float32Array, { temperature, topK = vocabulary, topP = 1 }: Draw): [number, number][] {
  const scores = [...logits].map((logit, id): [number, number] => [
    id,
    Math.exp((logit - Math.max(...logits)) / temperature),
  ]);
  const normalise = (list: [number, number][]) => {
    const total = list.reduce((sum, [, weight]) => sum + weight, 0);
    return list.map(([id, weight]): [number, number] => [id, weight / total]);
  };
  const sorted = scores.sort(([, a], [, b]) => b - a);
  const kept = normalise(sorted.filter(([, weight]) => weight >= sorted[Math.min(topK, vocabulary) - 1]![1]));
  let mass = 0;
  const nucleus = kept.filter(([, p], index) => {
    const equal = index > 0 && p === kept[index - 1]![1];
    const inside = equal ? mass < topP + p : mass < topP;
    mass += p;
    return topP === 1 || inside;
  });
  return normalise(nucleus).sort(([a], [b]) => a - b);
}

describe.skipIf(obstacle)(`tokens drawn on the device${obstacle ? ` (${obstacle})` : ''}`, () => {
  let device: Device;
  beforeAll(async () => {
    device = await webgpuBackend.open({ computeType: 'f32', extra: { software: 'allow' } });
  });
  afterAll(async () => await device[Symbol.asyncDispose]());

  async function drawn(logits: readonly Float32Array[], draws: readonly Draw[]): Promise<number[]> {
    using layer = await device.compile(head, weights);
    const data = Float32Array.from(logits.flatMap((row) => [...row]));
    using x = device.upload(f32([logits.length, vocabulary], data));
    const rows = logits.map((_, slot) => ({ slot, past: 0, count: 1 }));
    using step = device.beginStep({ ids: new Int32Array(rows.length), rows }, { x });
    step.run(layer, {});
    step.draw!(draws);
    await step.submit();
    const ids = await device.download(step.value('ids'));
    expect(ids).toMatchObject({ dtype: 'i32', shape: [rows.length, 1] });
    return [...ids.data];
  }

  const logits = Float32Array.from(
    { length: vocabulary },
    (_, id) => 3 * Math.sin(id * 12.9898) + 2 * Math.cos(id * 78.2),
  );

  it('are the first of the largest at temperature 0', async () => {
    const tie = logits.map((x, id) => (id === 300 || id === 599 ? 9 : x));
    const low = logits.map((x) => x - 100);
    const draw = { temperature: 0, uniform: 0.9 };
    expect(await drawn([tie, low, logits], [draw, draw, draw])).toEqual([
      300,
      low.indexOf(Math.max(...low)),
      logits.indexOf(Math.max(...logits)),
    ]);
  });

  const options: Omit<Draw, 'uniform'>[] = [
    { temperature: 1 },
    { temperature: 0.5, topK: 7 },
    { temperature: 1.3, topP: 0.6 },
    { temperature: 2, topK: 40, topP: 0.8 },
    { temperature: 1, topK: 1 },
    { temperature: 1, topP: 0.01 },
  ];
  it.each(options)('follow the distribution of %o', async (option) => {
    const want = distribution(logits, { ...option, uniform: 0 });
    // In the middle of every token's share of [0, 1), for the likely ones.
    const cases: { readonly id: number; readonly uniform: number }[] = [];
    let before = 0;
    for (const [id, p] of want) {
      if (p > 1e-4) cases.push({ id, uniform: before + p / 2 });
      before += p;
    }
    const some = cases.filter((_, index) => index % Math.ceil(cases.length / 40) === 0);
    const got = await drawn(
      some.map(() => logits),
      some.map(({ uniform }) => ({ ...option, uniform })),
    );
    expect(got).toEqual(some.map(({ id }) => id));
  });

  it('keep what equals the last of the k most likely', async () => {
    const equal = Float32Array.from({ length: vocabulary }, (_, id) => (id < 3 ? 2 : 0));
    const draws = [0, 0.34, 0.67, 0.999].map((uniform) => ({ temperature: 1, topK: 2, uniform }));
    expect(
      await drawn(
        draws.map(() => equal),
        draws,
      ),
    ).toEqual([0, 1, 2, 2]);
  });

  it('go into the next step before they are known', async () => {
    using first = await device.compile(head, weights);
    using next = await device.compile(embedding, weights);
    const rows = [0, 1].map((slot) => ({ slot, past: 0, count: 1 }));
    const wanted = [17, 599];
    const data = Float32Array.from({ length: 2 * vocabulary }, (_, i) =>
      Number(i % vocabulary === wanted[Math.floor(i / vocabulary)]),
    );
    using x = device.upload(f32([2, vocabulary], data));
    using step = device.beginStep({ ids: new Int32Array(2), rows }, { x });
    step.run(first, {});
    step.draw!(rows.map(() => ({ temperature: 0, uniform: 0 })));
    const submitted = step.submit();
    using after = device.beginStep({ ids: new Int32Array(2), rows }, { ids: step.value('ids') });
    after.run(next, {}, [1]);
    after.run(next, {}, [0]);
    await after.submit();
    await submitted;
    expect([...(await device.download(after.value('x'))).data]).toEqual(wanted);
  });

  it('need logits, and options in range', async () => {
    using step = device.beginStep({ ids: new Int32Array(1), rows: [{ slot: 0, past: 0, count: 1 }] });
    expect(() => step.draw!([{ temperature: 0, uniform: 0 }])).toThrow(/logits/);
    await expect(drawn([logits], [{ temperature: -1, uniform: 0 }])).rejects.toThrow(/range/);
    await expect(drawn([logits], [])).rejects.toThrow(/one draw a row/);
  });
});
