import { stateBytes } from '@dsla/spec';
import { hybrid } from '../blocks.js';
import { type Bench, type Case, expectSame } from '../case.js';
import { load, type Player } from '../play.js';

// Stores: export, import, copy, clear, bytes. All over a model with every kind of state.

const past = 20;
const slots = 4;

/** A player whose slot 0 holds `past` tokens of text 0. */
async function begun(bench: Bench): Promise<Player> {
  const player = await load(bench.device, hybrid, { slots });
  await player.step([{ slot: 0, past: 0, count: past }]);
  return player;
}

/** The next five tokens of text 0 from a slot: logits of each. */
async function next(player: Player, slot: number, text = 0): Promise<{ logits: Float32Array }> {
  return { logits: (await player.step([{ slot, text, past, count: 5 }])).logits! };
}

export const state: readonly Case[] = [
  {
    name: 'state > an exported slot imported into another gives the same next tokens',
    async run(bench) {
      using player = await begun(bench);
      for (const store of Object.values(player.stores)) store.import(2, await store.export(0));
      expectSame(bench, 'states', await player.states(2, past), await player.states(0, past));
      expectSame(bench, 'imported', await next(player, 2), await next(player, 0));
    },
  },
  {
    name: 'state > an export stays as it was when its slot moves on',
    async run(bench) {
      using player = await begun(bench);
      const want = await player.states(0, past);
      const kept = await Promise.all(Object.values(player.stores).map((store) => store.export(0)));
      await next(player, 0);
      Object.values(player.stores).forEach((store, index) => {
        store.import(1, kept[index]!);
      });
      expectSame(bench, 'kept', await player.states(1, past), want);
    },
  },
  {
    name: 'state > a copy goes its own way',
    async run(bench) {
      using player = await begun(bench);
      for (const store of Object.values(player.stores)) store.copy(0, 3);
      const before = await player.states(0, past);
      const other = await next(player, 3, 7);
      expectSame(bench, 'original', await player.states(0, past), before);
      const own = await next(player, 0);
      using fresh = await begun(bench);
      expectSame(bench, 'original goes on', own, await next(fresh, 0));
      await fresh.step([{ slot: 1, text: 0, past: 0, count: past }]);
      expectSame(bench, 'copy goes on', other, await next(fresh, 1, 7));
    },
  },
  {
    name: 'state > a copy of a slot that was never used clears its target',
    async run(bench) {
      using player = await begun(bench);
      const first = await player.step([{ slot: 1, past: 0, count: past }]);
      for (const store of Object.values(player.stores)) store.copy(2, 0);
      const again = await player.step([{ slot: 0, text: 1, past: 0, count: past }]);
      expectSame(bench, 'cleared', again, first);
    },
  },
  {
    name: 'state > a cleared slot starts afresh',
    async run(bench) {
      using player = await begun(bench);
      const first = await player.step([{ slot: 1, past: 0, count: past }]);
      for (const store of Object.values(player.stores)) store.clear(0);
      const again = await player.step([{ slot: 0, text: 1, past: 0, count: past }]);
      expectSame(bench, 'cleared', again, first);
      expectSame(bench, 'cleared', await player.states(0, past), await player.states(1, past));
    },
  },
  {
    name: 'state > nothing leaks between slots',
    async run(bench) {
      using player = await begun(bench);
      const before = await player.states(0, past);
      await player.step([{ slot: 1, past: 0, count: 30 }]);
      for (const store of Object.values(player.stores)) store.clear(1);
      await player.step([
        { slot: 3, past: 0, count: 9 },
        { slot: 1, past: 0, count: 70 },
      ]);
      expectSame(bench, 'slot 0', await player.states(0, past), before);
      using alone = await begun(bench);
      expectSame(bench, 'slot 0 goes on', await next(player, 0), await next(alone, 0));
    },
  },
  {
    name: 'state > bytes follow the specification',
    async run(bench) {
      const start = bench.device.memory().bytes;
      using player = await begun(bench);
      const { computeType } = bench.device.capabilities;
      for (const [name, store] of Object.entries(player.stores)) {
        // A store may grow as its rows do, and a device may compute in wider numbers or pad, but not without limit.
        const least = stateBytes(store.spec, past, computeType);
        const most = 2 * slots * stateBytes(store.spec, store.tokens, 'f32') + 65536;
        if (store.bytes < least || store.bytes > most)
          throw new Error(
            `${name}: holds ${store.bytes} bytes after ${past} tokens in one slot, expected ${least}..${most}`,
          );
        const before = store.bytes;
        store.clear(0);
        if (store.bytes > before) throw new Error(`${name}: ${store.bytes} bytes after clear, ${before} before`);
      }
      const held = Object.values(player.stores).reduce((sum, { bytes }) => sum + bytes, 0);
      const counted = bench.device.memory().bytes - start;
      if (counted < held) throw new Error(`the device counts ${counted} bytes, its stores alone hold ${held}`);
    },
  },
];
