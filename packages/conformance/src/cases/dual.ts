import { type Case, matchReference } from '../case.js';
import { type DualShape, dualTape, ropeOf } from '../mechanisms.js';
import type { PlayOptions } from '../play.js';
import { ragged } from './nodes.js';

// dualLinearAttention against the reference, as published and in the foldable form.

function dualCase(
  name: string,
  shape: DualShape,
  options: PlayOptions = {},
  tolerance: 'forward' | 'extreme' = 'forward',
): Case {
  const inputs = { gates: { mean: 2, std: 2 }, ...options.inputs };
  return {
    name: `nodes > dualLinearAttention > ${name}`,
    run: (bench) =>
      matchReference(bench, { tapes: [dualTape(shape)], steps: ragged, options: { ...options, inputs }, tolerance }),
  };
}

const published: DualShape = { heads: 2, kvHeads: 2, headDim: 8, states: 2, gate: 'vector' };
const foldable: DualShape = {
  heads: 4,
  kvHeads: 2,
  headDim: 8,
  states: 2,
  gate: 'scalar',
  features: 8,
  normaliser: true,
  rope: ropeOf(8),
  exact: { window: 8, sinks: 2 },
  mixPerHead: true,
};

const exactParts = [1, 8, 64].flatMap((window) => [0, 2, 4].map((sinks) => ({ window, sinks })));

export const dual: readonly Case[] = [
  ...[1, 2, 3].map((states) => dualCase(`published, ${states} states`, { ...published, states })),
  dualCase('published, head width 10, mix per head', {
    ...published,
    headDim: 10,
    heads: 3,
    kvHeads: 3,
    mixPerHead: true,
  }),
  dualCase('published, grouped queries', { ...published, heads: 6 }),
  dualCase('published, rope in the state, output norm', {
    ...published,
    rope: ropeOf(8),
    ropeInState: true,
    outputNorm: true,
  }),
  dualCase('scalar gates, no feature map', { ...published, gate: 'scalar' }),
  dualCase('feature map without normaliser', { ...published, gate: 'scalar', features: 6 }),
  dualCase('normaliser without exact part', { ...published, gate: 'scalar', features: 6, normaliser: true }),
  ...exactParts.map((exact) =>
    dualCase(`foldable, window ${exact.window}, sinks ${exact.sinks}`, { ...foldable, exact }),
  ),
  ...[1, 3].map((states) => dualCase(`foldable, ${states} states`, { ...foldable, states })),
  dualCase('foldable, rope in the state', { ...foldable, ropeInState: true }),
  dualCase('foldable, partial rope', { ...foldable, rope: ropeOf(4) }),
  dualCase('foldable, one kv head, 5 features', { ...foldable, heads: 3, kvHeads: 1, features: 5, mixPerHead: false }),
  dualCase('foldable, output norm', { ...foldable, outputNorm: true }),
  dualCase('foldable, head width 64', {
    ...foldable,
    heads: 2,
    kvHeads: 1,
    headDim: 64,
    features: 64,
    rope: ropeOf(64),
  }),
  // logSigmoid / 0.1: decays down to e^-60 a token, so that e^(sum of decays) overflows within a few tokens.
  dualCase('published, temperature 0.1', { ...published, temperature: 0.1 }, { inputs: { gates: {} } }, 'extreme'),
  dualCase(
    'published, gates near 0',
    { ...published, temperature: 1 },
    { inputs: { gates: { mean: -300 } } },
    'extreme',
  ),
  dualCase('published, gates at 1', { ...published }, { inputs: { gates: { mean: 60 } } }),
  dualCase('foldable, temperature 0.1', { ...foldable, temperature: 0.1 }, { inputs: { gates: {} } }, 'extreme'),
  dualCase('foldable, gates near 0', { ...foldable, temperature: 1 }, { inputs: { gates: { mean: -300 } } }, 'extreme'),
  dualCase('foldable, gates at 1', foldable, { inputs: { gates: { mean: 60 } } }),
  dualCase('foldable, features beyond the range of exp', { ...foldable, featureSpread: { std: 20 } }, {}, 'extreme'),
];
