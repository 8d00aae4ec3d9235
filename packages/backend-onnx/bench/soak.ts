// Long runs and failures on CUDA: memory over many steps and many devices, bytes copied by a step that draws its token, and what
// happens where there is no memory left. One JSON object a line on stdout; bundled as conformance.ts is.
import { parseArgs } from 'node:util';
import { type AttentionLayer, Scope, type StateStore } from '@dsla/spec';
import { bodyAndHead, randomWeights, synthetic } from '../../backend-webgpu/bench/synthetic.js';
import type { OnnxDevice } from '../src/device.js';
import { onnxBackend } from '../src/index.js';
import { failure } from './failure.js';

const { values: options } = parseArgs({
  options: {
    shape: { type: 'string', default: 'llama2-7b' },
    layers: { type: 'string', default: '2' },
    steps: { type: 'string', default: '10000' },
    cycles: { type: 'string', default: '100' },
    fill: { type: 'boolean', default: false },
  },
});

const model = synthetic(options.shape, Number(options.layers));
const source = randomWeights(model);
const graphs = bodyAndHead(model);

interface Opened {
  readonly device: OnnxDevice;
  readonly layers: readonly AttentionLayer[];
  stores(slots: number, tokens: number): Record<string, StateStore>;
}

async function opened(scope: Scope): Promise<Opened> {
  const device = scope.use((await onnxBackend.open({ extra: { device: 'cuda' } })) as OnnxDevice);
  const layers: AttentionLayer[] = [];
  for (const graph of graphs) layers.push(scope.use(await device.compile(graph, source)));
  const stores = (slots: number, tokens: number): Record<string, StateStore> =>
    Object.fromEntries(
      layers.flatMap(({ graph }) =>
        graph.states.map((spec) => [spec.name, device.createState(spec, slots, tokens)] as const),
      ),
    );
  return { device, layers, stores };
}

async function step(
  { device, layers }: Opened,
  states: Record<string, StateStore>,
  past: number,
  count: number,
): Promise<number> {
  using made = device.beginStep({ ids: new Int32Array(count).fill(past % 100), rows: [{ slot: 0, past, count }] });
  for (const layer of layers) made.run(layer, states);
  made.draw!([{ temperature: 0, uniform: 0 }]);
  await made.submit();
  return (await device.download(made.value('ids'))).data[0]!;
}

const memory = (device: OnnxDevice): Record<string, unknown> => ({
  deviceFree: device.binding.available(),
  rss: process.memoryUsage.rss(),
  copied: { ...device.binding.traffic },
});

{
  await using scope = new Scope();
  const model = await opened(scope);
  const tokens = Number(options.steps);
  const states = model.stores(1, tokens);
  for (const past of [0, 1, 2, 3, 4]) await step(model, states, past, 1);
  print({ test: 'steps', at: 5, ...memory(model.device) });
  for (let past = 5; past < tokens; past++) {
    await step(model, states, past, 1);
    if ((past + 1) % (tokens / 4) === 0) print({ test: 'steps', at: past + 1, ...memory(model.device) });
  }
  if (options.fill) await fill(model);
}

for (let cycle = 1; cycle <= Number(options.cycles); cycle++) {
  await using scope = new Scope();
  const model = await opened(scope);
  await step(model, model.stores(1, 64), 0, 32);
  if (cycle % 10 === 0) print({ test: 'devices', at: cycle, ...memory(model.device) });
}

/** Takes nearly all of the memory, then asks for more; afterwards a step must work and give the same. */
async function fill(model: Opened): Promise<void> {
  const { device } = model;
  const prompt = 2048;
  const states = model.stores(1, prompt);
  const before = await step(model, states, 0, 64);
  const part = { name: 'p', dtype: 'f32', shape: ['tokens'] } as const;
  const big = { name: 's', kind: 'kv', parts: [part] };
  print({ test: 'too large a state', ...(await failure(() => device.createState(big, 1, 2 ** 37))) });
  const blocks: { free(): void }[] = [];
  const error = await failure(() => {
    for (const bytes of [2 ** 31, 2 ** 26, 2 ** 22])
      while (device.binding.available() > bytes + 2 ** 22) blocks.push(device.binding.allocate(bytes, 'block'));
    device.binding.allocate(2 ** 31, 'one block more');
  });
  print({ test: 'full', ...error, ...memory(device) });
  const slots = model.stores(2, prompt);
  print({ test: 'a slot without memory', ...(await failure(() => step(model, slots, 0, 1))) });
  for (const store of Object.values(slots)) store[Symbol.dispose]();
  print({ test: 'a long step without memory', ...(await failure(() => step(model, states, 0, prompt))) });
  for (const block of blocks) block.free();
  print({ test: 'afterwards', same: (await step(model, states, 0, 64)) === before, ...memory(device) });
}

function print(line: Readonly<Record<string, unknown>>): void {
  console.log(JSON.stringify({ ...line, shape: options.shape, layers: Number(options.layers) }));
}
