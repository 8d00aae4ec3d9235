import { parseArgs } from 'node:util';
import type { Row } from '@dsla/spec';
import { openKernelTimer } from './kernel-timer.js';
import { synthetic } from './synthetic.js';

// Microseconds of every kernel of one layer by the device's own clock, each alike one once. One JSON object a line on stdout;
// see README.md.

const { values: options } = parseArgs({
  options: {
    shape: { type: 'string', default: 'llama2-7b' },
    mixer: { type: 'string', default: 'default' },
    /** New tokens a row, tokens already there, rows. */
    count: { type: 'string', default: '1' },
    past: { type: 'string', default: '4096' },
    rows: { type: 'string', default: '1' },
    repeat: { type: 'string', default: '50' },
    /** Seconds of work before the first time is taken. */
    warm: { type: 'string', default: '3' },
    software: { type: 'boolean', default: false },
  },
});
const timer = await openKernelTimer(options.software);
const model = synthetic(options.shape, options.shape === 'zamba-7b' ? 3 : 1);
const rows = Array.from({ length: Number(options.rows) }, (_, slot): Row => {
  return { slot, past: Number(options.past), count: Number(options.count) };
});
const segments = model.segments.map(({ versions }) => versions[options.mixer] ?? versions.default);
const graphs = [...segments, model.head, ...(model.folds[options.mixer] ?? [])];
const shapeOf = (name: string) => model.weights[name]!.shape;

for (const graph of graphs) await timer.time({ graph, shapeOf, rows }, 0);
await timer.warm(Number(options.warm));
const seen = new Set<string>();
for (const graph of graphs)
  for (const { kernel, grid, milliseconds, bytes } of await timer.time(
    { graph, shapeOf, rows },
    Number(options.repeat),
  )) {
    const key = `${kernel} ${grid} ${bytes}`;
    if (seen.has(key)) continue;
    seen.add(key);
    const rate = bytes / milliseconds / 1e6;
    const line = { tape: graph.name, kernel, grid, microseconds: 1000 * milliseconds, bytes, gigabytesPerSecond: rate };
    console.log(JSON.stringify(line));
  }
timer.close();
process.exit(); // the instance must not be collected before
