import { performance } from 'node:perf_hooks';
import type { Model, Sequence } from '@dsla/runtime';
import type { Speed } from '../report/report.js';
import { pause } from './pause.js';
import { type Rounds, repeat } from './repeat.js';
import { summarise } from './statistics.js';

/** A model that is timed, under the name that the rows get. The model needs two slots. */
export interface Timed {
  readonly contender: string;
  readonly backend: string;
  readonly model: Model;
  /** As many as the longest length plus `decodeTokens`. */
  readonly ids: Int32Array;
}

export interface SpeedProtocol {
  /** Ascending, in tokens. */
  readonly lengths: readonly number[];
  readonly rounds: Rounds;
  /** Timed single-token steps at every length and round. */
  readonly decodeTokens: number;
}

/** Samples in milliseconds by test and length. */
interface Walk {
  readonly prefill: number[];
  readonly decode: number[][];
}

/**
 * Times all models in turn, round by round, so that a drift of the machine meets all of them. One walk along the text gives
 * every length: the prefill time of a length is the sum of the pieces up to it; single tokens are decoded on a fork.
 */
export async function measureSpeed(
  models: readonly Timed[],
  protocol: SpeedProtocol,
  onStep: (contender: string) => void,
  signal: AbortSignal,
): Promise<Speed[]> {
  const walks = new Map<Timed, Walk[]>(models.map((timed) => [timed, []]));
  for (const timed of models) await warmUp(timed, protocol, signal);
  await repeat(protocol.rounds, async () => {
    for (const timed of models) {
      walks.get(timed)!.push(await walk(timed, protocol, signal));
      onStep(timed.contender);
    }
  });
  return [...walks].flatMap(([timed, taken]) => rows(timed, protocol.lengths, taken));
}

/** One prompt of the shortest length and as many decoded tokens as are timed later. */
async function warmUp({ model, ids }: Timed, protocol: SpeedProtocol, signal: AbortSignal): Promise<void> {
  const length = protocol.lengths[0]!;
  await pause(signal);
  using sequence = model.open();
  await model.run([{ sequence, ids: ids.subarray(0, length) }], { signal });
  await decode(model, sequence, ids.subarray(length, length + protocol.decodeTokens), signal);
}

async function walk(
  { model, ids }: Timed,
  { lengths, decodeTokens }: SpeedProtocol,
  signal: AbortSignal,
): Promise<Walk> {
  using sequence = model.open();
  const prefill: number[] = [];
  const decoded: number[][] = [];
  let spent = 0;
  for (const length of lengths) {
    await pause(signal);
    const piece = ids.subarray(sequence.past, length);
    const start = performance.now();
    await model.run([{ sequence, ids: piece }], { signal });
    spent += performance.now() - start;
    prefill.push(spent);
    using fork = await model.fork(sequence);
    decoded.push(await decode(model, fork, ids.subarray(length, length + decodeTokens), signal));
  }
  return { prefill, decode: decoded };
}

async function decode(model: Model, sequence: Sequence, ids: Int32Array, signal: AbortSignal): Promise<number[]> {
  const samples: number[] = [];
  for (let index = 0; index < ids.length; index++) {
    const start = performance.now();
    await model.run([{ sequence, ids: ids.subarray(index, index + 1) }], { signal });
    samples.push(performance.now() - start);
  }
  return samples;
}

function rows({ contender, backend }: Timed, lengths: readonly number[], walks: readonly Walk[]): Speed[] {
  const row = (test: 'prefill' | 'decode', length: number, tokens: number, samples: number[]): Speed => {
    const { mean, sd, median } = summarise(samples.map((milliseconds) => (1000 * tokens) / milliseconds));
    return { contender, backend, test, length, tokens, samples, mean, sd, median };
  };
  return lengths.flatMap((length, index) => [
    row(
      'prefill',
      length,
      length,
      walks.map(({ prefill }) => prefill[index]!),
    ),
    row(
      'decode',
      length,
      1,
      walks.flatMap(({ decode }) => decode[index]!),
    ),
  ]);
}
