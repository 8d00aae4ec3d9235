import { type Device, f32 } from '@dsla/spec';
import { expect } from 'vitest';
import { attention, embedding, headAll, hybrid, mixer } from '../blocks.js';
import type { Bench, Case } from '../case.js';
import { load } from '../play.js';
import { tape, weightsOfTapes } from '../tape.js';
import { plannedWeights } from '../weights.js';

// Who makes it disposes it; nothing stays behind.

const rows = [{ slot: 0, past: 0, count: 5 }];
const batch = { rows, ids: new Int32Array(5) };

/** Runs twice, so that what a device keeps for good (pipelines, scratch) is there before memory is compared. */
function leakless(name: string, scenario: (bench: Bench) => Promise<void>): Case {
  return {
    name: `ownership > ${name}`,
    async run(bench) {
      await scenario(bench);
      const start = await settled(bench.device);
      await scenario(bench);
      expect(await settled(bench.device)).toEqual(start);
    },
  };
}

/** Memory once work in flight has been freed: the first figure that stays for ten turns of the event loop. */
async function settled(device: Device): Promise<{ readonly buffers: number; readonly bytes: number }> {
  let last = device.memory();
  for (let same = 0; same < 10; ) {
    await new Promise((resolve) => setTimeout(resolve, 1));
    const now = device.memory();
    same = now.bytes === last.bytes && now.buffers === last.buffers ? same + 1 : 0;
    last = now;
  }
  return last;
}

const disposed = { code: 'E_DISPOSED' };

/** The error of a sync or async call. */
async function failure(call: () => unknown): Promise<unknown> {
  try {
    await call();
  } catch (error) {
    return error;
  }
  throw new Error(`must throw: ${call}`);
}

export const ownership: readonly Case[] = [
  leakless('a model, its states and its steps leave nothing behind', async ({ device }) => {
    using player = await load(device, hybrid);
    await player.step(rows);
  }),
  leakless('disposing twice is harmless', async ({ device }) => {
    const player = await load(device, hybrid);
    const step = player.begin(rows);
    const buffer = device.upload(f32([1, 3], new Float32Array(3)));
    await step.submit();
    for (const item of [step, buffer, ...Object.values(player.stores), ...Object.values(player.layers)]) {
      item[Symbol.dispose]();
      item[Symbol.dispose]();
    }
    player[Symbol.dispose]();
  }),
  leakless('disposing with a step in flight is safe', async ({ device }) => {
    const player = await load(device, hybrid);
    const step = player.begin(rows);
    const submitted = step.submit();
    step[Symbol.dispose]();
    player[Symbol.dispose]();
    await submitted;
  }),
  leakless('a step that is never submitted leaves nothing behind', async ({ device }) => {
    using player = await load(device, hybrid);
    player.begin(rows)[Symbol.dispose]();
  }),
  leakless('an error inside a step leaves nothing behind', async ({ device }) => {
    using player = await load(device, [embedding, mixer('mixer', attention), headAll]);
    const runs = [{ tape: 'embedding' }, { tape: 'mixer' }, { tape: 'headAll' }];
    expect(
      await failure(() => player.begin(rows, [...runs.slice(0, 2), { tape: 'headAll', rows: [7] }])),
    ).toMatchObject({
      code: 'E_INPUT',
    });
    await player.step(rows, runs);
  }),
  leakless('a compile that fails leaves nothing behind', async ({ device }) => {
    const weights = weightsOfTapes([mixer('mixer', attention)]);
    const { 'mixer.o': _, ...incomplete } = weights;
    const compile = () => device.compile(mixer('mixer', attention).graph, plannedWeights(incomplete));
    expect(await failure(compile)).toMatchObject({ code: 'E_CONFIG' });
  }),
  {
    name: 'ownership > many steps hold no more than one',
    async run({ device }) {
      using player = await load(device, hybrid);
      const step = (past: number) => player.step([{ slot: 0, past, count: 1 }]);
      for (let past = 0; past < 3; past++) await step(past);
      const start = await settled(device);
      for (let past = 3; past < 20; past++) await step(past);
      expect(await settled(device)).toEqual(start);
    },
  },
  {
    name: 'ownership > weights of the same name are held once and live as long as a layer needs them',
    async run({ device }) {
      const size = 128;
      const layer = (name: string) =>
        tape(name, (t) => t.output('y', t.linear(t.input('x', size), 'shared', size, size)));
      const [first, second] = [layer('first'), layer('second')];
      const source = plannedWeights(first.weights);
      const one = await device.compile(first.graph, source);
      const before = (await settled(device)).bytes;
      using two = await device.compile(second.graph, source);
      expect((await settled(device)).bytes - before).toBeLessThan(size * size);
      one[Symbol.dispose]();
      using x = device.upload(f32([5, size], new Float32Array(5 * size).fill(1)));
      using step = device.beginStep(batch, { x });
      step.run(two, {});
      await step.submit();
      const { data } = await device.download(step.value('y'));
      expect(data.some((y) => y !== 0)).toBe(true);
    },
  },
  {
    name: 'ownership > use after dispose is E_DISPOSED',
    async run({ device }) {
      const player = await load(device, [embedding, mixer('mixer', attention)]);
      const { embedding: embed, mixer: layer } = player.layers;
      const store = player.stores['mixer.kv']!;
      const buffer = device.upload(f32([5, 3], new Float32Array(15)));
      const done = device.beginStep(batch);
      done.run(embed!, {});
      const value = done.value('x');
      await done.submit();
      using step = device.beginStep(batch);
      step.run(embed!, {});
      for (const item of [layer!, buffer, done]) item[Symbol.dispose]();
      const calls = [
        () => step.run(layer!, player.stores),
        () => device.download(buffer),
        () => device.beginStep(batch, { x: buffer }),
        () => device.download(value),
        () => done.run(embed!, {}),
        () => done.value('x'),
        () => done.submit(),
      ];
      for (const call of calls) expect(await failure(call), `${call}`).toMatchObject(disposed);
      player[Symbol.dispose]();
      const parts = [() => store.clear(0), () => store.copy(0, 1), () => store.export(0), () => store.import(0, [])];
      for (const call of parts) expect(await failure(call), `${call}`).toMatchObject(disposed);
    },
  },
  {
    name: 'ownership > a run with a disposed store is E_DISPOSED',
    async run({ device }) {
      using player = await load(device, [embedding, mixer('mixer', attention)]);
      player.stores['mixer.kv']![Symbol.dispose]();
      expect(await failure(() => player.begin(rows))).toMatchObject(disposed);
    },
  },
  {
    name: 'ownership > a disposed device refuses everything',
    async run({ open }) {
      const device = await open();
      const { graph, weights } = embedding;
      await device[Symbol.asyncDispose]();
      await device[Symbol.asyncDispose]();
      const spec = mixer('mixer', attention).graph.states[0]!;
      const calls = [
        () => device.compile(graph, plannedWeights(weights)),
        () => device.createState(spec, 1, 8),
        () => device.upload(f32([1], new Float32Array(1))),
        () => device.beginStep(batch),
      ];
      for (const call of calls) expect(await failure(call), `${call}`).toMatchObject(disposed);
    },
  },
];
