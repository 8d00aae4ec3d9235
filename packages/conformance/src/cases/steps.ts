import { attention, embedding, headAll, hybrid, mixer, width } from '../blocks.js';
import { type Case, expectSame, inPieces, matchReference } from '../case.js';
import { expectEqualBits } from '../compare.js';
import { load, type Piece } from '../play.js';
import { shuffled } from '../random.js';
import { tape } from '../tape.js';

// The batches of a server, over a model with every kind of state.

const slots = 9;

function batches(name: string, ...steps: Piece[][]): Case {
  return {
    name: `steps > ${name}`,
    run: (bench) => matchReference(bench, { tapes: hybrid, steps, options: { slots } }),
  };
}

/** Every slot once, in random order, each with its own length; then all decode together in another order. */
function manySlots(): Piece[][] {
  const lengths = Array.from({ length: slots }, (_, slot) => 1 + ((slot * 17) % 40));
  const prefill = shuffled('prefill', slots).map((slot) => ({ slot, past: 0, count: lengths[slot]! }));
  const decode = (step: number) =>
    shuffled(`decode ${step}`, slots).map((slot) => ({ slot, past: lengths[slot]! + step, count: 1 }));
  return [prefill, decode(0), decode(1)];
}

/** One pass over a text against the same text in pieces: the same logits of every token, the same states. */
function cut(name: string, counts: readonly number[]): Case {
  return {
    name: `steps > ${name}`,
    async run(bench) {
      using player = await load(bench.device, hybrid);
      const total = counts.reduce((a, b) => a + b);
      const whole = await inPieces(player, 'logits', { slot: 0, text: 0 }, [total]);
      const pieces = await inPieces(player, 'logits', { slot: 1, text: 0 }, counts);
      expectSame(bench, name, { logits: pieces }, { logits: whole });
      expectSame(bench, name, await player.states(1, total), await player.states(0, total));
    },
  };
}

export const steps: readonly Case[] = [
  batches('one token', [{ slot: 4, past: 0, count: 1 }], [{ slot: 4, past: 1, count: 1 }]),
  batches('prefill', [{ slot: 0, past: 0, count: 130 }]),
  batches(
    'prefill and decode in one batch',
    [{ slot: 3, past: 0, count: 20 }],
    [
      { slot: 3, past: 20, count: 1 },
      { slot: 1, past: 0, count: 70 },
    ],
    [
      { slot: 1, past: 70, count: 1 },
      { slot: 5, past: 0, count: 3 },
      { slot: 3, past: 21, count: 1 },
    ],
  ),
  batches('many slots in random order', ...manySlots()),
  cut('prefill and decode equal one pass', [20, 1, 1, 1, 1, 1]),
  cut('a prompt in uneven pieces', [1, 7, 64, 3, 25]),
  cut(
    'token by token',
    Array.from({ length: 24 }, () => 1),
  ),
  {
    name: 'steps > rows of a batch do not disturb one another',
    async run(bench) {
      using player = await load(bench.device, hybrid, { slots });
      const rows: Piece[] = [13, 1, 70, 2].map((count, slot) => ({ slot, past: 0, count }));
      const { last } = await player.step(rows);
      const alone: number[] = [];
      for (const row of rows)
        alone.push(...(await player.step([{ ...row, slot: row.slot + 4, text: row.slot }])).last!);
      expectSame(bench, 'batch', { last: last! }, { last: Float32Array.from(alone) });
    },
  },
  {
    name: 'steps > a run for some rows leaves the other rows of its outputs as they were',
    async run(bench) {
      const shift = tape('shift', (t) => {
        const x = t.input('x', width);
        t.output('x', t.push({ op: 'add', a: x, b: x }));
      });
      using player = await load(bench.device, [embedding, shift]);
      const rows: Piece[] = [3, 1, 4].map((count, slot) => ({ slot, past: 0, count }));
      const before = (await player.step(rows, [{ tape: 'embedding' }])).x!;
      const after = (
        await player.step(rows, [{ tape: 'embedding' }, { tape: 'shift', rows: [1] }, { tape: 'shift', rows: [1] }])
      ).x!;
      expectEqualBits('rows 0 and 2', without(after, 3, 4), without(before, 3, 4));
      expectSame(
        bench,
        'row 1',
        { x: after.slice(3 * width, 4 * width) },
        { x: before.slice(3 * width, 4 * width).map((x) => 4 * x) },
      );
    },
  },
  {
    name: 'steps > runs for groups of rows equal one run for all, states included',
    async run(bench) {
      const tapes = [embedding, mixer('mixer', attention), headAll];
      using player = await load(bench.device, tapes, { slots: 6 });
      const rows: Piece[] = [5, 1, 70].map((count, slot) => ({ slot, past: 0, count }));
      const moved = rows.map((row) => ({ ...row, slot: 5 - row.slot, text: row.slot }));
      const all = await player.step(rows);
      const groups = await player.step(moved, [
        { tape: 'embedding' },
        { tape: 'mixer', rows: [2, 0] },
        { tape: 'mixer', rows: [1] },
        { tape: 'headAll' },
      ]);
      expectSame(bench, 'groups', { logits: groups.logits! }, { logits: all.logits! });
      for (const { slot, count } of rows)
        expectSame(bench, `slot ${slot}`, await player.states(5 - slot, count), await player.states(slot, count));
    },
  },
];

/** x [tokens, width] without the tokens from (inclusive) to (exclusive). */
function without(x: Float32Array, from: number, to: number): Float32Array {
  return Float32Array.from([...x.subarray(0, from * width), ...x.subarray(to * width)]);
}
