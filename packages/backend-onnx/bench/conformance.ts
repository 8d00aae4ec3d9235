// The conformance suite on the CUDA device of this machine, for hosts without vitest. From packages/backend-onnx:
//   npx esbuild bench/conformance.ts --bundle --platform=node --format=esm --target=es2022 --conditions=@dsla/source --external:koffi \
//     --external:onnxruntime-node --alias:vitest=../backend-webgpu/bench/vitest.ts --outfile=OUT/conformance.mjs
//   cp src/worker.js OUT && node OUT/conformance.mjs --types f32,f16 > results.jsonl
import { parseArgs } from 'node:util';
import { backendConformance, float16 } from '@dsla/conformance';
import * as runner from 'vitest';
import { onnxBackend } from '../src/index.js';

interface Outcome {
  readonly passed: number;
  readonly failed: readonly { readonly name: string; readonly message: string }[];
}

const { values: options } = parseArgs({
  options: { types: { type: 'string', default: 'f32,f16' }, device: { type: 'string', default: 'cuda' } },
});

for (const computeType of options.types.split(',') as ('f32' | 'f16')[]) {
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
