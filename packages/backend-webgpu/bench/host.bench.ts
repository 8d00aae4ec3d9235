import { parseArgs } from 'node:util';
import { describe, parseConfig } from '@dsla/models';
import type { AttentionLayer, StateStore } from '@dsla/spec';
import { loadGpu, must } from '../src/adapter.js';
import { openDevice } from '../src/device.js';
import { randomWeights, statistics } from './synthetic.js';

// What the host does for a step of decoding, without a GPU: Dawn's null backend takes the commands and does nothing. 32 layers,
// narrow, so that they fit anywhere, with the kernels of a device without subgroups.

const { values: options } = parseArgs({
  options: {
    batch: { type: 'string', default: '1' },
    past: { type: 'string', default: '512' },
    rounds: { type: 'string', default: '300' },
    layers: { type: 'string', default: '32' },
  },
});
const [layerCount, rounds, batch, past] = [options.layers, options.rounds, options.batch, options.past].map(Number) as [
  number,
  number,
  number,
  number,
];
const adapter = (await must(await loadGpu({ extra: { backend: 'null' } })).requestAdapter())!;
await using device = await openDevice(adapter, { computeType: 'f32' });
const model = describe(
  parseConfig({
    model_type: 'llama',
    vocab_size: 512,
    hidden_size: 128,
    num_hidden_layers: layerCount,
    num_attention_heads: 1,
    num_key_value_heads: 1,
    intermediate_size: 256,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    max_position_embeddings: 4096,
  }),
);
const layers: AttentionLayer[] = [];
const stores: Record<string, StateStore> = {};
for (const graph of [...model.segments.map(({ versions }) => versions.default), model.head]) {
  layers.push(await device.compile(graph, randomWeights(model)));
  for (const spec of graph.states) stores[spec.name] ??= device.createState(spec, batch, past + 2 * rounds);
}
const slots = [...Array(batch).keys()];
const ids = new Int32Array(batch);
const record: number[] = [];
const submit: number[] = [];
for (let round = 0; round < 2 * rounds; round++) {
  const start = performance.now();
  using step = device.beginStep({ ids, rows: slots.map((slot) => ({ slot, past: past + round, count: 1 })) });
  for (const layer of layers) step.run(layer, stores);
  const recorded = performance.now();
  const submitted = step.submit();
  const done = performance.now();
  await submitted;
  if (round < rounds) continue;
  record.push(recorded - start);
  submit.push(done - recorded);
}
console.log(
  JSON.stringify({
    test: 'host',
    layers: layerCount,
    batch,
    past,
    record: statistics(record),
    submit: statistics(submit),
    node: process.version,
  }),
);
