import { f32, type StateStore } from '@dsla/spec';
import { attention, hybrid, windowed } from '../blocks.js';
import { type Case, expectSame, matchReference } from '../case.js';
import { expectClose } from '../compare.js';
import { attentionTape, type DualShape, dualTape, ropeOf } from '../mechanisms.js';
import { load } from '../play.js';
import { poisoned } from '../states.js';
import type { Tape } from '../tape.js';

// NaN where nothing may be read. Every comparison of the suite refuses NaN before it looks at a tolerance.

const foldable: DualShape = {
  ...attention,
  states: 2,
  gate: 'scalar',
  features: 8,
  normaliser: true,
  rope: ropeOf(8),
  exact: { window: 8, sinks: 2 },
};

/** Imports a state of `past` tokens with NaN in every entry that those tokens have not written, and goes on. */
function beyond(label: string, one: Tape, past: number): Case {
  return {
    name: `poison > entries not written yet > ${label}, ${past} tokens`,
    async run(bench) {
      using player = await load(bench.device, [one]);
      const [store] = Object.values(player.stores);
      await player.step([{ slot: 0, past: 0, count: past }]);
      store!.import(1, poisoned(store!, past, await store!.export(0), Number.NaN));
      for (const [done, count] of [
        [0, 1],
        [1, 3],
        [4, 30],
      ] as const) {
        const got = await player.step([{ slot: 1, text: 0, past: past + done, count }]);
        const want = await player.step([{ slot: 0, past: past + done, count }]);
        expectSame(bench, `${count} tokens on`, got, want);
      }
      expectSame(bench, 'states', await player.states(1, past + 34), await player.states(0, past + 34));
    },
  };
}

/** Fills every part of a slot with NaN. */
async function ruin(store: StateStore, slot: number): Promise<void> {
  const parts = await store.export(slot);
  store.import(
    slot,
    parts.map(({ shape, data }) => f32(shape, new Float32Array(data.length).fill(Number.NaN))),
  );
}

export const poison: readonly Case[] = [
  beyond('cache', attentionTape(attention), 20),
  beyond('cache of one token', attentionTape(attention), 1),
  beyond('ring of a window', attentionTape(windowed), 5),
  beyond('ring of a window', attentionTape(windowed), 1),
  beyond('ring of an exact part', dualTape(foldable), 5),
  beyond('ring of an exact part', dualTape(foldable), 1),
  {
    name: 'poison > a ruined slot does not reach its neighbours',
    async run(bench) {
      using player = await load(bench.device, hybrid);
      for (const store of Object.values(player.stores)) await ruin(store, 1);
      const pieces = [0, 1, 2].map((slot) => ({ slot, past: 0, count: 9 }));
      const { last } = await player.step(pieces);
      using clean = await load(bench.reference, hybrid);
      const { last: want } = await clean.step(pieces);
      const { forward, peak } = bench.tolerance;
      const width = want!.length / 3;
      for (const row of [0, 2])
        expectClose(
          `row ${row}`,
          last!.subarray(row * width, (row + 1) * width),
          want!.subarray(row * width, (row + 1) * width),
          forward,
          peak,
        );
    },
  },
  {
    name: 'poison > clear heals a ruined slot',
    async run(bench) {
      using player = await load(bench.device, hybrid);
      for (const store of Object.values(player.stores)) {
        await ruin(store, 1);
        store.clear(1);
      }
      const got = await player.step([{ slot: 1, text: 0, past: 0, count: 20 }]);
      expectSame(bench, 'healed', got, await player.step([{ slot: 0, past: 0, count: 20 }]));
    },
  },
  {
    name: 'poison > a long ragged run has no NaN anywhere',
    run: (bench) =>
      matchReference(bench, {
        tapes: hybrid,
        steps: [
          [
            { slot: 3, past: 0, count: 1 },
            { slot: 1, past: 0, count: 129 },
            { slot: 0, past: 0, count: 64 },
          ],
          [
            { slot: 0, past: 64, count: 65 },
            { slot: 3, past: 1, count: 1 },
          ],
        ],
      }),
  },
];
