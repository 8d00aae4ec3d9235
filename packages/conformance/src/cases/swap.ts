import { attention, convertible, embedding, foldable, head } from '../blocks.js';
import { type Bench, type Case, expectSame, inPieces } from '../case.js';
import { expectEqualBits } from '../compare.js';
import { attentionTape, type DualShape, dualTape, foldableTape, foldTape, ropeOf } from '../mechanisms.js';
import { load, type Piece, type Run } from '../play.js';

// Exchanging softmax attention for linear states while a request runs.

const shapes: Readonly<Record<string, DualShape>> = {
  'no exact part': { ...without(foldable), temperature: 16 },
  'window 8, sinks 2': foldable,
  'window 64, sinks 4': { ...foldable, exact: { window: 64, sinks: 4 } },
  'window 1, rope in the state': { ...foldable, exact: { window: 1, sinks: 0 }, ropeInState: true },
  'vector gates': { heads: 4, kvHeads: 2, headDim: 8, states: 2, gate: 'vector', rope: ropeOf(8), ropeInState: true },
  'vector gates, no rotation': { heads: 2, kvHeads: 2, headDim: 8, states: 3, gate: 'vector' },
};

function without({ exact: _, ...shape }: DualShape): DualShape {
  return shape;
}

/** Lengths inside the window, just beyond it, and over several chunks. */
const pasts = [1, 5, 9, 70, 130];

/** A fold of the KV cache of every row, in one step of rows without tokens, against prefills of the dual layer. */
function fold(label: string, shape: DualShape, gateSource: 'key' | 'value'): Case {
  return {
    name: `swap > a folded cache equals a prefill > ${label}, gates from the ${gateSource}`,
    async run(bench) {
      const { heads, kvHeads, headDim, rope } = shape;
      const softmax = attentionTape({ heads, kvHeads, headDim, ...(rope && { rope }) });
      const tapes = [softmax, foldableTape(shape, gateSource), foldTape(shape, gateSource, softmax)];
      using player = await load(bench.device, tapes, { slots: 2 * pasts.length });
      const rows: Piece[] = pasts.map((count, slot) => ({ slot, past: 0, count }));
      const moved = rows.map((row) => ({ ...row, slot: row.slot + pasts.length, text: row.slot }));
      await player.step(rows, [{ tape: 'foldable' }]);
      await player.step(moved, [{ tape: 'attention' }]);
      await player.step([{ slot: moved[0]!.slot, text: 9, past: 0, count: 12 }], [{ tape: 'foldable' }]); // an old state to replace
      const folded = moved.map(({ slot, count, text }) => ({ slot, text, past: count, count: 0 }));
      await player.step(folded.reverse(), [{ tape: 'fold' }]);
      for (const { slot, count } of rows) {
        const got = await player.states(slot + pasts.length, count);
        const want = await player.states(slot, count);
        for (const name of Object.keys(want).filter((key) => key.startsWith('dual')))
          expectSame(bench, `past ${count}`, { [name]: got[name]! }, { [name]: want[name]! });
      }
      const next = (pieces: readonly Piece[]) =>
        player.step(
          pieces.map((row) => ({ ...row, past: row.count, count: 3 })),
          [{ tape: 'foldable' }],
        );
      expectSame(bench, 'next tokens', { o: (await next(moved)).o! }, { o: (await next(rows)).o! });
    },
  };
}

const rows = [
  { slot: 3, count: 5 },
  { slot: 0, count: 20 },
  { slot: 2, count: 12 },
] as const;
const decodes = 6;

/** Logits of every step, [rows, vocabulary] each, of three rows; row 1 is served by the dual layer from decode `from` on. */
async function serve(bench: Bench, from: number): Promise<Float32Array[]> {
  const { project, attend, dual, rest, fold } = convertible;
  using player = await load(bench.device, [embedding, project, attend, dual, rest, head, fold]);
  const outputs: Float32Array[] = [];
  for (let index = 0; index <= decodes; index++) {
    const swapped = index >= from;
    const pieces: Piece[] = rows.map(({ slot, count }) =>
      index === 0 ? { slot, past: 0, count } : { slot, past: count + index - 1, count: 1 },
    );
    if (index === from && index > 0) {
      await player.step([{ ...pieces[1]!, count: 0 }], [{ tape: 'fold' }]);
      player.stores['layer.kv']!.clear(rows[1].slot);
    }
    const middle: Run[] = swapped
      ? [
          { tape: 'attend', rows: [0, 2] },
          { tape: 'dual', rows: [1] },
        ]
      : [{ tape: 'attend' }];
    const runs = [{ tape: 'embedding' }, { tape: 'project' }, ...middle, { tape: 'rest' }, { tape: 'head' }];
    outputs.push((await player.step(pieces, runs)).last!);
  }
  return outputs;
}

/** Row `row` of logits [3, vocabulary]. */
function logits(x: Float32Array, row: number): Float32Array {
  const width = x.length / rows.length;
  return x.slice(row * width, (row + 1) * width);
}

/** The same text in one pass and token by token. */
function recurrent(label: string, shape: DualShape): Case {
  return {
    name: `swap > one pass equals the recurrence token by token > ${label}`,
    async run(bench) {
      using player = await load(bench.device, [dualTape(shape)], { inputs: { gates: { mean: 2, std: 2 } } });
      const whole = await inPieces(player, 'o', { slot: 0, text: 0 }, [130]);
      const single = await inPieces(
        player,
        'o',
        { slot: 1, text: 0 },
        Array.from({ length: 130 }, () => 1),
      );
      expectSame(bench, label, { o: whole }, { o: single });
      expectSame(bench, label, await player.states(0, 130), await player.states(1, 130));
    },
  };
}

/** With the states' weight at exp(-1e4) = 0 only the exact part is left. */
function plainWindow(window: number, sinks: number): Case {
  return {
    name: `swap > a state of weight 0 leaves the window > ${window}, sinks ${sinks}`,
    async run(bench) {
      const { heads, kvHeads, headDim } = attention;
      const rope = ropeOf(headDim);
      const softmax = attentionTape({ heads, kvHeads, headDim, rope, window: { size: window, sinks } });
      const dual = dualTape({ ...foldable, exact: { window, sinks }, logWeight: { mean: -1e4, std: 0 } });
      using player = await load(bench.device, [softmax, dual]);
      for (const counts of [[1], [70, 1, 1, 30]]) {
        const want = await inPieces(player, 'o', { slot: 0 }, counts, [{ tape: 'attention' }]);
        const got = await inPieces(player, 'o', { slot: 0 }, counts, [{ tape: 'dual' }]);
        expectSame(bench, `${counts}`, { o: got }, { o: want });
        for (const store of Object.values(player.stores)) store.clear(0);
      }
    },
  };
}

export const swap: readonly Case[] = [
  ...Object.entries(shapes).flatMap(([label, shape]) => [fold(label, shape, 'key'), fold(label, shape, 'value')]),
  ...Object.entries(shapes).map(([label, shape]) => recurrent(label, shape)),
  ...[1, 8, 64].flatMap((window) => [0, 4].map((sinks) => plainWindow(window, sinks))),
  {
    name: 'swap > a row swapped in mid-generation leaves the other rows bit-equal',
    async run(bench) {
      const [never, later] = [await serve(bench, Number.POSITIVE_INFINITY), await serve(bench, 3)];
      for (const row of [0, 2]) {
        never.forEach((want, step) => {
          expectEqualBits(`step ${step} row ${row}`, logits(later[step]!, row), logits(want, row));
        });
      }
      if (logits(never[4]!, 1).every((x, i) => x === logits(later[4]!, 1)[i])) throw new Error('row 1 was not swapped');
    },
  },
  {
    name: 'swap > a row swapped in mid-generation goes on as if it had been linear from the start',
    async run(bench) {
      const [always, later] = [await serve(bench, 0), await serve(bench, 3)];
      for (let step = 3; step <= decodes; step++)
        expectSame(bench, `step ${step}`, { last: logits(later[step]!, 1) }, { last: logits(always[step]!, 1) });
    },
  },
];
