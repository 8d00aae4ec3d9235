import { parseArgs } from 'node:util';
import {
  type DualForm,
  dualState,
  elementCount,
  f32,
  isTrainingDevice,
  type LayerGraph,
  type Node,
  type WeightSource,
} from '@dsla/spec';
import { tfjsBackend } from '../src/index.js';

// Forward and backward of one foldable DSLA layer (q, k, v, o frozen; gates, mix, feature maps trained): tokens a second.
// npm run bench --  [--engines wasm,cpu] [--tokens 512] [--width 256] [--steps 2] [--json]

const { values: options } = parseArgs({
  options: {
    engines: { type: 'string', default: 'wasm,cpu' },
    tokens: { type: 'string', default: '512' },
    width: { type: 'string', default: '256' },
    steps: { type: 'string', default: '2' },
    json: { type: 'boolean', default: false },
  },
});
const [tokens, width, steps] = [options.tokens, options.width, options.steps].map(Number) as [number, number, number];
const headDim = 64;
const heads = width / headDim;

const form: DualForm = {
  states: 2,
  kvHeads: heads,
  headDim,
  gate: 'scalar',
  temperature: 16,
  featureMap: { kind: 'exp', query: 'featureQ', key: 'featureK' },
  normaliser: true,
  rope: {
    frequencies: Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim)),
    rotaryDim: headDim,
  },
  ropeInState: false,
  exact: { window: 64, sinks: 4, logWeight: 'logWeight' },
};
const linear = (weight: string, x: number): Node => ({ op: 'linear', x, weight });
const graph: LayerGraph = {
  name: 'layer',
  states: [dualState('dual', form, headDim)],
  nodes: [
    { op: 'input', name: 'x', width },
    linear('q', 0),
    linear('k', 0),
    linear('v', 0),
    linear('gates', 3),
    {
      op: 'dualLinearAttention',
      q: 1,
      k: 2,
      v: 3,
      gates: 4,
      mix: 'mix',
      state: 'dual',
      heads,
      scale: headDim ** -0.5,
      form,
    },
    linear('o', 5),
    { op: 'output', name: 'y', x: 6 },
  ],
};
const shapes: Readonly<Record<string, readonly number[]>> = {
  q: [width, width],
  k: [width, width],
  v: [width, width],
  o: [width, width],
  gates: [2 * heads, width],
  mix: [heads, 2],
  logWeight: [heads],
  featureQ: [heads, headDim, headDim],
  featureK: [heads, headDim, headDim],
};
const noise = (count: number, size: number) => Float32Array.from({ length: count }, () => size * (Math.random() - 0.5));
const weights: WeightSource = {
  spec: (name) => ({ storage: 'f32', shape: shapes[name]! }),
  read: async (name) => f32(shapes[name]!, noise(elementCount(shapes[name]!), 3 * width ** -0.5)),
};

const results = [];
for (const engine of options.engines.split(',')) {
  await using device = await tfjsBackend.open({ extra: { engine } });
  if (!isTrainingDevice(device)) throw new Error(`${engine} does not train`);
  using layer = await device.compileTrainable(graph, weights, ['gates', 'mix', 'logWeight', 'featureQ', 'featureK']);
  const batch = { rows: 1, tokens, inputs: { x: f32([tokens, width], noise(tokens * width, 2)) } };
  const target = f32([tokens, width], new Float32Array(tokens * width));
  const seconds: number[] = [];
  for (let step = 0; step <= steps; step++) {
    const start = performance.now();
    await layer.gradients(batch, [{ kind: 'mse', output: 'y', target }]);
    if (step > 0) seconds.push((performance.now() - start) / 1000); // the first warms up
  }
  seconds.sort((a, b) => a - b);
  const median = seconds[Math.floor(seconds.length / 2)]!;
  results.push({ engine, tokens, width, heads, steps, seconds, tokensPerSecond: tokens / median });
}
if (options.json) console.log(JSON.stringify(results, null, 2));
else
  for (const { engine, tokensPerSecond, seconds } of results)
    console.log(
      `${engine}: ${tokensPerSecond.toFixed(0)} tokens/s (steps of ${seconds.map((s) => s.toFixed(2)).join(', ')} s)`,
    );
