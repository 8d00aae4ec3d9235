// The conformance suite on the CUDA device of this machine, for hosts without vitest, and logits of a small model with matrices in
// blocks, on the device and on the CPU. From packages/backend-onnx:
//   npx esbuild bench/conformance.ts --bundle --platform=node --format=esm --target=es2022 --conditions=@dsla/source --external:koffi \
//     --external:onnxruntime-node --alias:vitest=../backend-webgpu/bench/vitest.ts --outfile=OUT/conformance.mjs
//   cp src/worker.js src/operators.js OUT && node OUT/conformance.mjs --types f32,f16 > results.jsonl
import { parseArgs } from 'node:util';
import { backendConformance, float16 } from '@dsla/conformance';
import { type Device, f32, fromFloat16, type OpenOptions, type WeightSource } from '@dsla/spec';
import * as runner from 'vitest';
import { bodyAndHead, randomWeights, synthetic } from '../../backend-webgpu/bench/synthetic.js';
import { onnxBackend } from '../src/index.js';

interface Outcome {
  readonly passed: number;
  readonly failed: readonly { readonly name: string; readonly message: string }[];
}

const { values: options } = parseArgs({
  options: {
    types: { type: 'string', default: 'f32,f16' },
    device: { type: 'string', default: 'cuda' },
    /** Types of matrices. */
    blocks: { type: 'string', default: 'q8,q4' },
  },
});

for (const computeType of options.types.split(',').filter(Boolean) as ('f32' | 'f16')[]) {
  const open = () => onnxBackend.open({ computeType, extra: { device: options.device } });
  backendConformance({
    name: `onnx ${options.device} ${computeType}`,
    open,
    ...(computeType === 'f16' && { tolerance: float16 }),
  });
  const start = performance.now();
  const outcome = await (runner as unknown as { runAll(): Promise<Outcome> }).runAll();
  await using device = await open();
  const seconds = (performance.now() - start) / 1000;
  console.log(JSON.stringify({ test: 'conformance', device: device.description, computeType, seconds, ...outcome }));
}

for (const weights of options.blocks.split(',').filter(Boolean)) {
  const extra = { device: options.device, weights };
  const [got, want] = [await logits({ extra }), await logits({ extra: { weights } })];
  const rms = (values: readonly number[]): number =>
    Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / values.length);
  const ratio = rms(got.map((x, at) => x - want[at]!)) / rms(want);
  console.log(JSON.stringify({ test: 'blocks', weights, ratio, values: got.length }));
}

/** Of a prompt of 9 tokens and of 4 tokens one by one. */
async function logits(open: OpenOptions): Promise<number[]> {
  const model = synthetic('tiny');
  const source = ofHalves(randomWeights(model));
  await using device: Device = await onnxBackend.open(open);
  const layers = [];
  for (const graph of bodyAndHead(model)) layers.push(await device.compile(graph, source));
  const specs = layers.flatMap(({ graph }) => graph.states);
  const states = Object.fromEntries(specs.map((spec) => [spec.name, device.createState(spec, 1, 16)]));
  const all: number[] = [];
  for (const [past, count] of [[0, 9] as const, ...[9, 10, 11, 12].map((at) => [at, 1] as const)]) {
    const ids = Int32Array.from({ length: count }, (_, at) => (37 * (past + at) + 11) % 1000);
    using step = device.beginStep({ ids, rows: [{ slot: 0, past, count }] });
    for (const layer of layers) step.run(layer, states);
    await step.submit();
    all.push(...Array.from((await device.download(step.value('logits'))).data, Number));
  }
  return all;
}

/** Numbers of float16 for every device: blocks made from numbers that differ in their last digits differ by whole steps. */
function ofHalves({ spec, read }: WeightSource): WeightSource {
  return {
    spec,
    async read(name, as) {
      const { shape, data, ...rest } = await read(name, 'f16');
      return as === 'f16' ? { shape, data, ...rest } : f32(shape, fromFloat16(data as Uint16Array));
    },
  };
}
