import { performance } from 'node:perf_hooks';
import type { Model, Sequence } from '@dsla/runtime';
import { pause } from './pause.js';

/** What llama-bench calls pp512, tg128, "tg128 @ d4096". */
export interface Test {
  readonly kind: 'prefill' | 'decode';
  /** Tokens that are timed. */
  readonly tokens: number;
  /** Tokens in the cache before. */
  readonly depth: number;
}

export function testName({ kind, tokens, depth }: Test): string {
  return `${kind === 'prefill' ? 'pp' : 'tg'}${tokens}${depth === 0 ? '' : ` @ d${depth}`}`;
}

/** Tokens a second of every repetition. The model needs two slots. Ids are drawn from a fixed sequence, as speed does not depend on them. */
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
  const samples: number[] = [];
  for (let repetition = warmUp ? -1 : 0; repetition < repetitions; repetition++) {
    await pause(signal);
    using sequence = test.depth > 0 ? await model.fork(base) : model.open();
    const start = performance.now();
    await runTokens(model, sequence, ids.subarray(test.depth), test.kind, signal);
    const seconds = (performance.now() - start) / 1000;
    if (repetition >= 0) samples.push(test.tokens / seconds);
  }
  return samples;
}

async function runTokens(model: Model, sequence: Sequence, ids: Int32Array, kind: Test['kind'], signal: AbortSignal) {
  if (kind === 'prefill') {
    await model.run([{ sequence, ids }], { signal });
    return;
  }
  for (let index = 0; index < ids.length; index++) {
    await model.run([{ sequence, ids: ids.subarray(index, index + 1) }], { signal });
  }
}

/** A full-period linear congruential sequence (Numerical Recipes) over the vocabulary. */
function someIds(count: number, vocabulary: number): Int32Array {
  let state = 1;
  return Int32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocabulary);
  });
}
