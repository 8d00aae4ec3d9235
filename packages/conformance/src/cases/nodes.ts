import { type Case, matchReference } from '../case.js';
import { type AttentionShape, attentionTape, convTape, ropeOf, scanTape } from '../mechanisms.js';
import type { Piece, PlayOptions } from '../play.js';
import { type Tape, type TapeBuilder, tape } from '../tape.js';

// Every kind of node alone, against the reference. dualLinearAttention has a file of its own.

/** One token, an odd number of tokens, more than one chunk of 64 or 128. */
const lengths: readonly Piece[][] = [1, 63, 130].map((count) => [{ slot: 0, past: 0, count }]);

/** The same as one ragged batch, then steps that mix a continued prefill with decoding. */
export const ragged: readonly (readonly Piece[])[] = [
  [
    { slot: 0, past: 0, count: 1 },
    { slot: 2, past: 0, count: 63 },
    { slot: 1, past: 0, count: 130 },
  ],
  [
    { slot: 1, past: 130, count: 1 },
    { slot: 0, past: 1, count: 5 },
    { slot: 2, past: 63, count: 1 },
  ],
  [{ slot: 0, past: 6, count: 1 }],
];

function stateless(name: string, write: (t: TapeBuilder) => void, options: PlayOptions = {}): Case {
  const tapes = [tape('stateless', write)];
  return { name: `nodes > ${name}`, run: (bench) => matchReference(bench, { tapes, steps: lengths, options }) };
}

function stateful(
  name: string,
  one: Tape,
  options: PlayOptions = {},
  tolerance: 'forward' | 'extreme' = 'forward',
): Case {
  return {
    name: `nodes > ${name}`,
    run: (bench) => matchReference(bench, { tapes: [one], steps: ragged, options, tolerance }),
  };
}

function attention(name: string, shape: AttentionShape, options?: PlayOptions, tolerance?: 'extreme'): Case {
  return stateful(`softmaxAttention > ${name}`, attentionTape(shape), options, tolerance);
}

const activations = ['silu', 'gelu', 'softplus', 'logSigmoid'] as const;
const windows = [
  { size: 1, sinks: 0 },
  { size: 8, sinks: 2 },
  { size: 64, sinks: 4 },
  { size: 8, sinks: 0 },
];

export const nodes: readonly Case[] = [
  stateless('embed', (t) => {
    t.output('y', t.push({ op: 'embed', table: t.weight('table', [11, 7]) }));
  }),
  stateless('linear > 7 to 5', (t) => t.output('y', t.linear(t.input('x', 7), 'w', 5, 7))),
  stateless('linear > 33 to 130 with bias', (t) => t.output('y', t.linear(t.input('x', 33), 'w', 130, 33, { std: 1 }))),
  ...[7, 48].map((width) =>
    stateless(`rmsNorm > ${width}`, (t) => t.output('y', t.rmsNorm(t.input('x', width), 'w', width))),
  ),
  stateless('rmsNorm > inputs as small as eps', (t) => t.output('y', t.rmsNorm(t.input('x', 9), 'w', 9)), {
    inputs: { x: { std: 0.003 } },
  }),
  stateless('add', (t) => t.output('y', t.push({ op: 'add', a: t.input('x', 7), b: t.input('z', 7) }))),
  stateless('mul', (t) => t.output('y', t.push({ op: 'mul', a: t.input('x', 7), b: t.input('z', 7) }))),
  stateless('concat', (t) => t.output('y', t.push({ op: 'concat', a: t.input('x', 3), b: t.input('z', 7) }))),
  stateless('slice', (t) => t.output('y', t.push({ op: 'slice', x: t.input('x', 9), from: 2, to: 7 }))),
  ...activations.map((fn) =>
    stateless(
      `activate > ${fn}`,
      (t) => t.output('y', t.push({ op: 'activate', x: t.input('x', 7), fn })),
      { inputs: { x: { std: 12 } } }, // reaches beyond 20, where softplus becomes linear, on both sides
    ),
  ),
  {
    name: 'nodes > lastToken',
    run: (bench) => {
      const last = tape('last', (t) => {
        const x = t.push({ op: 'lastToken', x: t.input('x', 7) });
        t.output('y', t.linear(x, 'w', 5, 7));
        t.output('last', x);
      });
      return matchReference(bench, { tapes: [last], steps: [...lengths, ...ragged] });
    },
  },
  {
    name: 'nodes > call > an unknown kind runs its body',
    run: (bench) => {
      const body = tape('swiglu', (t) => {
        const [gate, up] = [t.input('gate', 7), t.input('up', 7)];
        t.output('y', t.push({ op: 'mul', a: t.push({ op: 'activate', x: gate, fn: 'silu' }), b: up }));
      });
      const outer = tape('outer', (t) => {
        const [x, z] = [t.input('x', 7), t.input('z', 7)];
        const y = t.push({ op: 'call', kind: 'conformance.swiglu', inputs: [z, x], body: body.graph });
        t.output('y', t.linear(y, 'w', 5, 7));
      });
      return matchReference(bench, { tapes: [outer], steps: lengths });
    },
  },
  stateful('causalConv > kernel 4', convTape(6, 4, true)),
  stateful('causalConv > kernel 2, no bias', convTape(7, 2, false)),
  {
    name: 'nodes > causalConv > pieces shorter than the kernel',
    run: (bench) =>
      matchReference(bench, {
        tapes: [convTape(5, 4, true)],
        steps: [
          [
            { slot: 3, past: 0, count: 1 },
            { slot: 0, past: 0, count: 2 },
          ],
          [
            { slot: 0, past: 2, count: 1 },
            { slot: 3, past: 1, count: 2 },
          ],
          [{ slot: 3, past: 3, count: 3 }],
        ],
      }),
  },
  stateful('selectiveScan > 1 head', scanTape(24, 1, 16), { inputs: { raw: { mean: -2, std: 2 } } }),
  stateful('selectiveScan > 2 heads, odd sizes', scanTape(14, 2, 5), { inputs: { raw: { mean: -2, std: 2 } } }),
  attention('one head of 8', { heads: 1, kvHeads: 1, headDim: 8 }),
  attention('rope', { heads: 2, kvHeads: 2, headDim: 16, rope: ropeOf(16) }),
  attention('grouped queries with rope', { heads: 6, kvHeads: 2, headDim: 8, rope: ropeOf(8) }),
  attention('one kv head', { heads: 3, kvHeads: 1, headDim: 64, rope: ropeOf(64) }),
  attention('partial rope', { heads: 2, kvHeads: 1, headDim: 16, rope: ropeOf(4) }),
  attention('head width 10', { heads: 3, kvHeads: 3, headDim: 10, rope: ropeOf(10) }),
  attention('head width 464', { heads: 1, kvHeads: 1, headDim: 464, scale: 232 ** -0.5 }),
  ...windows.map((window) =>
    attention(`window ${window.size}, sinks ${window.sinks}`, {
      heads: 4,
      kvHeads: 2,
      headDim: 8,
      rope: ropeOf(8),
      window,
    }),
  ),
  attention(
    'scores beyond the range of exp',
    { heads: 2, kvHeads: 2, headDim: 8 },
    { inputs: { q: { std: 8 }, k: { std: 8 } } },
    'extreme',
  ),
];
