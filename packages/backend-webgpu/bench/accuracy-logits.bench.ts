import { webgpuBackend } from '../src/index.js';
import { randomWeights, statistics, synthetic } from './synthetic.js';

// What logits of all tokens take: milliseconds of the embedding and the head of a Llama2-7B, ten steps a sample. One JSON object a
// line on stdout.

const steps = 10;
const model = synthetic('llama2-7b', 1);
await using device = await webgpuBackend.open({});
const source = randomWeights(model);
using embed = await device.compile(model.segments[0]!.versions.default, source);
using head = await device.compile(model.headAll, source);

for (const tokens of [1024, 4096]) {
  for (const start = performance.now(); performance.now() - start < 1000; ) await run(tokens);
  const samples: number[] = [];
  for (let round = 0; round < 10; round++) samples.push(await run(tokens));
  console.log(
    JSON.stringify({ test: 'embed and logits of all', tokens, milliseconds: { ...statistics(samples), samples } }),
  );
}

/** Milliseconds of a step among some. */
async function run(tokens: number): Promise<number> {
  const ids = new Int32Array(tokens).fill(1);
  const start = performance.now();
  const submitted: Promise<void>[] = [];
  for (let n = 0; n < steps; n++) {
    using step = device.beginStep({ ids, rows: [{ slot: 0, past: 0, count: tokens }] });
    for (const layer of [embed, head]) step.run(layer, {});
    submitted.push(step.submit());
  }
  await Promise.all(submitted);
  return (performance.now() - start) / steps;
}
