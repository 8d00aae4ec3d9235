import { defineConfig } from 'tsup';

// One configuration for every package: ESM only, `using` lowered for Node 20.
export default defineConfig({
  entry: ['src/index.ts'],
  format: 'esm',
  target: 'node20',
  dts: true,
  clean: true,
  sourcemap: true,
  splitting: false,
});
