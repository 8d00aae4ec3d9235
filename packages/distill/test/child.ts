import { writeSync } from 'node:fs';
import { chain } from '../src/chain.js';
import { openStudent } from '../src/student.js';
import { data, heldOut, options, recipe, trainer } from './tiny.js';

// The chain of chain.test.ts; a line a step: [task and step, loss].
const [base, out] = process.argv.slice(2) as [string, string];
await using device = await trainer();
await using student = await openStudent(base, { device, mixer: { name: 'foldable', options } });
await chain(student, {
  order: { order: [1, 0], keep: 1, origin: 'a test' },
  level: 2,
  recipe,
  data,
  heldOut,
  out,
  resume: true,
  onProgress: (event) => {
    if (event.kind === 'step') writeSync(1, `${JSON.stringify([`${event.task} ${event.step}`, event.loss])}\n`);
  },
});
