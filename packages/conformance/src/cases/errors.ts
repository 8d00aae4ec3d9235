import { f32, type LayerGraph } from '@dsla/spec';
import { expect } from 'vitest';
import { attention, embedding, headAll, hybrid, mixer } from '../blocks.js';
import { type Bench, type Case, expectSame } from '../case.js';
import { load, type Piece } from '../play.js';
import { tape } from '../tape.js';
import { plannedWeights } from '../weights.js';

// Messages say where, which rule and which value; nothing has changed after them.

/** Fails, at whatever point between beginStep and submit, with this code and these words. */
function refusedBatch(name: string, pieces: readonly Piece[], ...words: (string | RegExp)[]): Case {
  return {
    name: `errors > ${name}`,
    async run({ device }) {
      using player = await load(device, [embedding, mixer('mixer', attention)], { slots: 2, tokens: 8 });
      await expectError(() => player.step(pieces), 'E_INPUT', ...words);
      await player.step([{ slot: 0, past: 0, count: 3 }]); // the device is as good as before
    },
  };
}

async function expectError(call: () => unknown, code: string, ...words: (string | RegExp)[]): Promise<void> {
  const error = await (async () => await call())().then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error, `must fail with ${code}`).toMatchObject({ name: 'DslaError', code });
  for (const word of words) expect((error as Error).message).toMatch(word);
}

function refusedTape(
  name: string,
  graph: LayerGraph,
  shapes: Record<string, number[]>,
  ...words: (string | RegExp)[]
): Case {
  return {
    name: `errors > ${name}`,
    async run({ device }) {
      const weights = plannedWeights(
        Object.fromEntries(Object.entries(shapes).map(([key, shape]) => [key, { shape }])),
      );
      await expectError(() => device.compile(graph, weights), 'E_INPUT', ...words);
    },
  };
}

const narrow = tape('narrow', (t) => t.output('y', t.linear(t.input('x', 7), 'w', 5, 7))).graph;
const stateless = { ...mixer('mixer', attention), graph: { ...mixer('mixer', attention).graph, states: [] } };

/** The tokens that follow ten of text 0, after `disturb` did something to the player. */
async function undisturbed(
  bench: Bench,
  disturb: (player: Awaited<ReturnType<typeof load>>) => Promise<void>,
): Promise<void> {
  using player = await load(bench.device, hybrid);
  await player.step([{ slot: 0, past: 0, count: 10 }]);
  const before = await player.states(0, 10);
  await disturb(player);
  expectSame(bench, 'states', await player.states(0, 10), before);
}

export const errors: readonly Case[] = [
  refusedTape('a weight of the wrong width', narrow, { w: [5, 6] }, /narrow node 1 \(linear\)/, /\[\*, 7\]/, /5, 6/),
  refusedTape(
    'an attention without its state',
    stateless.graph,
    Object.fromEntries(Object.entries(stateless.weights).map(([name, { shape }]) => [name, [...shape]])),
    /mixer node \d+ \(softmaxAttention\)/,
    /mixer\.kv/,
  ),
  {
    name: 'errors > an op of a later version is unsupported, in a sentence',
    async run({ device }) {
      const graph = { name: 'later', states: [], nodes: [{ op: 'teleport', x: 0 }] } as unknown as LayerGraph;
      expect(device.unsupported(graph).join(' ')).toMatch(/teleport/);
      await expect(device.compile(graph, plannedWeights({}))).rejects.toThrow(/teleport/);
    },
  },
  {
    name: 'errors > what compiles is not unsupported',
    run: async ({ device }) => expect(hybrid.flatMap(({ graph }) => device.unsupported(graph))).toEqual([]),
  },
  refusedBatch('no rows', [], /at least one row/),
  refusedBatch(
    'a slot used twice',
    [
      { slot: 1, past: 0, count: 1 },
      { slot: 1, past: 0, count: 1 },
    ],
    /one row only/,
    /1/,
  ),
  refusedBatch('a slot out of range', [{ slot: 2, past: 0, count: 1 }], /slot/, /2/),
  refusedBatch('a row beyond the capacity', [{ slot: 0, past: 6, count: 3 }], /capacity 8/, /9/),
  refusedBatch('a negative past', [{ slot: 0, past: -1, count: 3 }], /past/, /-1/),
  {
    name: 'errors > ids that do not fill the rows',
    run: ({ device }) =>
      expectError(
        () => device.beginStep({ rows: [{ slot: 0, past: 0, count: 3 }], ids: new Int32Array(2) }),
        'E_INPUT',
        /ids/,
        /2/,
      ),
  },
  {
    name: 'errors > a named value that nothing wrote',
    async run({ device }) {
      using player = await load(device, [headAll, embedding]);
      const ids = new Int32Array(1);
      using step = device.beginStep({ rows: [{ slot: 0, past: 0, count: 1 }], ids });
      await expectError(() => step.value('nowhere'), 'E_INPUT', /nowhere/);
      await expectError(() => step.run(player.layers.headAll!, {}), 'E_INPUT', /headAll/, /x/);
    },
  },
  {
    name: 'errors > a run without a state that its tape names',
    async run({ device }) {
      using player = await load(device, [embedding, mixer('mixer', attention)]);
      using step = device.beginStep({ rows: [{ slot: 0, past: 0, count: 1 }], ids: new Int32Array(1) });
      step.run(player.layers.embedding!, {});
      await expectError(() => step.run(player.layers.mixer!, {}), 'E_INPUT', /mixer\.kv/);
    },
  },
  {
    name: 'errors > an import of the wrong shape changes nothing',
    run: (bench) =>
      undisturbed(bench, async ({ stores }) => {
        const [name, store] = Object.entries(stores)[0]!;
        const parts = await store.export(0);
        const wrong = parts.map(() => f32([2, 2], new Float32Array(4)));
        await expectError(() => store.import(0, wrong), 'E_INPUT', name);
        await expectError(() => store.import(0, parts.slice(1)), 'E_INPUT', name);
        await expectError(() => store.import(99, parts), 'E_INPUT', /99/);
        await expectError(() => store.clear(-1), 'E_INPUT', /-1/);
        await expectError(() => store.copy(0, 99), 'E_INPUT', /99/);
      }),
  },
  {
    name: 'errors > a signal stops before the submit and changes no state',
    run: (bench) =>
      undisturbed(bench, async (player) => {
        using step = player.begin([{ slot: 0, past: 10, count: 3 }]);
        await expectError(() => step.submit(AbortSignal.abort()), 'E_ABORTED');
      }),
  },
  {
    name: 'errors > a signal that fires after the submit does not stop the step',
    async run(bench) {
      using player = await load(bench.device, hybrid);
      const pieces = [{ slot: 0, past: 0, count: 10 }];
      const control = new AbortController();
      using step = player.begin(pieces);
      const submitted = step.submit(control.signal);
      control.abort();
      await submitted;
      const interrupted = await player.states(0, 10);
      await player.step([{ slot: 1, text: 0, past: 0, count: 10 }]);
      expectSame(bench, 'states', interrupted, await player.states(1, 10));
    },
  },
  {
    name: 'errors > a compile can be aborted',
    async run({ device }) {
      const { graph, weights } = mixer('mixer', attention);
      await expectError(() => device.compile(graph, plannedWeights(weights), AbortSignal.abort()), 'E_ABORTED');
    },
  },
  {
    name: 'errors > a step is over once it is submitted',
    async run({ device }) {
      using player = await load(device, [embedding]);
      using step = player.begin([{ slot: 0, past: 0, count: 1 }]);
      await step.submit();
      await expectError(() => step.run(player.layers.embedding!, {}), 'E_INPUT');
      await expectError(() => step.submit(), 'E_INPUT');
    },
  },
  {
    name: 'errors > a healthy device is not lost',
    run: async ({ device }) => expect(await Promise.race([device.lost, Promise.resolve('healthy')])).toBe('healthy'),
  },
];
