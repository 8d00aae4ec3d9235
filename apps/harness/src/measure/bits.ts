import type { TextModel } from '@dsla/runtime';
import { pause } from './pause.js';

// Tokens whose logits are held at a time.
const chunk = 512;

/** Bits that every token costs after those before it, [ids]; the first one, which nothing precedes, costs 0. */
export async function tokenBits(model: TextModel, ids: readonly number[], signal: AbortSignal): Promise<Float64Array> {
  const costs = new Float64Array(ids.length);
  const { vocabulary } = model.description;
  using sequence = model.open();
  for (let from = 0; from < ids.length - 1; from += chunk) {
    await pause(signal);
    const piece = ids.slice(from, Math.min(from + chunk, ids.length - 1));
    const [logits] = await model.run([{ sequence, ids: piece }], { logits: 'all', signal });
    for (let index = 0; index < piece.length; index++) {
      const next = from + index + 1;
      costs[next] = bits(logits!.subarray(index * vocabulary, (index + 1) * vocabulary), ids[next]!);
    }
  }
  return costs;
}

/** -log2 softmax(logits)[id] */
function bits(logits: Float32Array, id: number): number {
  let most = Number.NEGATIVE_INFINITY;
  for (const logit of logits) if (logit > most) most = logit;
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - most);
  return (Math.log(sum) + most - logits[id]!) / Math.LN2;
}
