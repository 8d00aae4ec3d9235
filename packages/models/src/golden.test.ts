import { expect, describe as group, it } from 'vitest';
import { distance, missing, openGolden } from '../test/golden.js';
import { runner } from '../test/run.js';
import { bindWeights, describe } from './index.js';

// Expected values: transformers in float32 (packages/conformance/golden/README.md).

const names = ['llama-base', 'llama-gqa', 'llama3-rope', 'llama-tied', 'llama-sharded-bf16', 'zamba-a', 'zamba-b'];
const tokens = 18;
const prefill = 13;

group.skipIf(missing)('golden models on the reference backend', () => {
  it.each(names)('%s: one pass, and the states it leaves', async (name) => {
    await using golden = await openGolden(name);
    const description = describe(golden.config);
    const run = await runner(description, bindWeights(description, golden.checkpoint), tokens);
    expect(distance(await run.feed(await golden.ids()), await golden.floats('logits'))).toBeLessThan(1e-4);
    expect(await stateDistances(golden, run)).toSatisfy((found: number[]) => found.every((error) => error < 1e-4));
  });

  it.each(names)('%s: prefill and decode are one pass', async (name) => {
    await using golden = await openGolden(name);
    const description = describe(golden.config);
    const run = await runner(description, bindWeights(description, golden.checkpoint), tokens);
    const ids = await golden.ids();
    expect(distance(await run.feed(ids.subarray(0, prefill)), await golden.floats('prefill.logits'))).toBeLessThan(
      1e-4,
    );
    for (let step = 0; prefill + step < tokens; step++) {
      const logits = await run.feed(ids.subarray(prefill + step, prefill + step + 1));
      expect(distance(logits, await golden.floats(`decode.${step}.logits`))).toBeLessThan(1e-4);
    }
    expect(await stateDistances(golden, run)).toSatisfy((found: number[]) => found.every((error) => error < 1e-4));
  });

  it('llama3-rope: the last of 1500 tokens', async () => {
    await using golden = await openGolden('llama3-rope');
    const description = describe(golden.config);
    const run = await runner(description, bindWeights(description, golden.checkpoint), 1500);
    const logits = await run.feed(await golden.ids('far.ids'));
    // The library's float32 angles are off by up to 1e-4 radians there, ours are not.
    expect(distance(logits.subarray(-4 * description.vocabulary), await golden.floats('far.logits'))).toBeLessThan(
      1e-3,
    );
  });

  it('the head of the last token is the last row of the head of all', async () => {
    await using golden = await openGolden('llama-gqa');
    const description = describe(golden.config);
    const weights = bindWeights(description, golden.checkpoint);
    const ids = await golden.ids();
    const all = await (await runner(description, weights, tokens)).feed(ids);
    const last = await (await runner({ ...description, headAll: description.head }, weights, tokens)).feed(ids);
    expect(last).toEqual(all.subarray(-description.vocabulary));
  });
});

type Opened = Awaited<ReturnType<typeof openGolden>>;
type Runner = Awaited<ReturnType<typeof runner>>;

/** Distance of every state that the library kept from ours. */
async function stateDistances(golden: Opened, run: Runner): Promise<number[]> {
  const found: number[] = [];
  const part = { k: ['kv', 0], v: ['kv', 1], conv: ['conv', 0], scan: ['scan', 0] } as const;
  for (const name of golden.vectors.tensors.keys()) {
    const [kind, layer] = name.split('.') as [keyof typeof part, string];
    if (!(kind in part) || layer === undefined) continue;
    const [state, index] = part[kind];
    const { data } = (await run.state(`layers.${layer}.${state}`))[index]!;
    found.push(distance(data as Float32Array, await golden.floats(name)));
  }
  expect(found.length).toBeGreaterThan(0);
  return found;
}
