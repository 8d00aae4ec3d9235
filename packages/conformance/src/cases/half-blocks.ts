import { joinGraphs } from '@dsla/spec';
import {
  attention,
  embedding,
  feedForward,
  foldable,
  head,
  headAll,
  mamba,
  mixer,
  published,
  windowed,
} from '../blocks.js';
import { type Case, expectSame, matchReference } from '../case.js';
import { load } from '../play.js';
import { type Tape, weightsOfTapes } from '../tape.js';
import { ragged } from './nodes.js';

// Half-blocks of Llama and Zamba against the reference; and a fused block against its halves.

function block(name: string, ...tapes: Tape[]): Case {
  return {
    name: `half-blocks > ${name}`,
    run: (bench) => matchReference(bench, { tapes: [embedding, ...tapes], steps: ragged }),
  };
}

export const halfBlocks: readonly Case[] = [
  block('Llama mixer', mixer('mixer', attention)),
  block('Llama mixer with window and sinks', mixer('mixer', windowed)),
  block('Llama feed-forward', feedForward('mlp')),
  block('Llama block', mixer('mixer', attention), feedForward('mlp'), headAll),
  block('DSLA mixer as published, gates from the hidden state', mixer('mixer', published, 'hidden')),
  block('DSLA mixer, foldable', mixer('mixer', foldable)),
  block('Zamba Mamba layer', mamba('mamba')),
  block('Zamba hybrid layer', mamba('zamba', true)),
  {
    name: 'half-blocks > joined tapes equal their halves',
    async run(bench) {
      const halves = [embedding, mixer('mixer', attention), feedForward('mlp'), mamba('mamba'), head];
      const graph = joinGraphs(
        halves.map((half) => half.graph),
        new Set(['last']),
      );
      using apart = await load(bench.device, halves);
      using joined = await load(bench.device, [{ graph, weights: weightsOfTapes(halves) }]);
      for (const pieces of ragged) {
        const { last } = await apart.step(pieces);
        expectSame(bench, 'joined', await joined.step(pieces), { last: last! });
      }
    },
  },
];
