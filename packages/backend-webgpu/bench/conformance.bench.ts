import { parseArgs } from 'node:util';
import { backendConformance, float16 } from '@dsla/conformance';
import type { OpenOptions } from '@dsla/spec';
import * as runner from 'vitest';
import { webgpuBackend } from '../src/index.js';
import type { Outcome } from './vitest.js';

// The conformance suite on the adapter of this machine, float32 and float16, with and without bounds checks. Bundled with
// --alias:vitest=./bench/vitest.ts; the golden files are read from ../golden beside the bundle's folder.

const { values: options } = parseArgs({
  options: {
    types: { type: 'string', default: 'f32,f16' },
    checks: { type: 'string', default: 'on,off' },
    software: { type: 'boolean', default: false },
  },
});

for (const computeType of options.types.split(',') as ('f32' | 'f16')[]) {
  for (const checks of options.checks.split(',')) {
    const open: OpenOptions = { computeType, extra: { checks, ...(options.software && { software: 'allow' }) } };
    backendConformance({
      name: `webgpu ${computeType}`,
      open: () => webgpuBackend.open(open),
      ...(computeType === 'f16' && { tolerance: float16 }),
    });
    const outcome = await (runner as unknown as { runAll(): Promise<Outcome> }).runAll();
    console.log(JSON.stringify({ test: 'conformance', computeType, checks, ...outcome }));
  }
}
