import { performance } from 'node:perf_hooks';
import type { Model, Sequence } from '@dsla/runtime';
import { Scope } from '@dsla/spec';
import { pause } from './pause.js';

/** What llama-bench calls pp512, tg128, "tg128 @ d4096". */
export interface Test {
  readonly kind: 'prefill' | 'decode';
  /** Tokens that are timed. */
  readonly tokens: number;
  /** Tokens in the cache before. */
  readonly depth: number;
  /** Sequences that run together, all alike. */
  readonly batch: number;
}

export function testName({ kind, tokens, depth, batch }: Test): string {
  const name = `${kind === 'prefill' ? 'pp' : 'tg'}${tokens}`;
  return `${name}${depth === 0 ? '' : ` @ d${depth}`}${batch === 1 ? '' : ` x ${batch}`}`;
}

/**
 * Tokens a second of every repetition, of all sequences together. The model needs a slot more than there are. Ids are a fixed
 * sequence, as speed does not depend on them. With `warmUp` it runs before until its speed is steady.
 */
export async function runTest(
  model: Model,
  test: Test,
  { repetitions, warmUp }: { readonly repetitions: number; readonly warmUp: boolean },
  signal: AbortSignal,
): Promise<number[]> {
  const ids = someIds(test.depth + test.tokens, model.description.vocabulary);
  using base = model.open();
  if (test.depth > 0)
    await model.run([{ sequence: base, ids: ids.subarray(0, test.depth) }], { logits: 'none', signal });
  const speed = async (): Promise<number> => {
    await pause(signal);
    await using scope = new Scope();
    const sequences: Sequence[] = [];
    for (let index = 0; index < test.batch; index++) {
      sequences.push(scope.use(test.depth > 0 ? await model.fork(base) : model.open()));
    }
    const start = performance.now();
    await runTokens(model, sequences, ids.subarray(test.depth), test.kind, signal);
    return (1000 * test.batch * test.tokens) / (performance.now() - start);
  };
  if (warmUp) await untilSteady(speed);
  const samples: number[] = [];
  for (let repetition = 0; repetition < repetitions; repetition++) samples.push(await speed());
  return samples;
}

/** Until two runs in a row differ by at most 5 %, or for 3 s: the clocks of a processor that was idle take that long to rise. */
export async function untilSteady(speed: () => Promise<number>): Promise<void> {
  const end = performance.now() + 3000;
  let last = await speed();
  while (performance.now() < end) {
    const next = await speed();
    if (Math.abs(next / last - 1) <= 0.05) return;
    last = next;
  }
}

/** Decoding goes on from the first of `ids` with the most likely tokens, drawn as generation does. */
async function runTokens(
  model: Model,
  sequences: readonly Sequence[],
  ids: Int32Array,
  kind: Test['kind'],
  signal: AbortSignal,
): Promise<void> {
  const inputs = sequences.map((sequence) => ({ sequence, ids: kind === 'prefill' ? ids : ids.subarray(0, 1) }));
  if (kind === 'prefill') {
    await model.run(inputs, { signal });
    return;
  }
  const draws = sequences.map(() => ({ temperature: 0, uniform: 0 }));
  let drawn = await model.draw(inputs, draws, signal);
  for (let step = 1; step < ids.length; step++) {
    const next = await model.draw(drawn, draws, signal);
    await drawn.ids;
    drawn[Symbol.dispose]();
    drawn = next;
  }
  await drawn.ids;
  drawn[Symbol.dispose]();
}

/** A full-period linear congruential sequence (Numerical Recipes) over the vocabulary. */
function someIds(count: number, vocabulary: number): Int32Array {
  let state = 1;
  return Int32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocabulary);
  });
}
