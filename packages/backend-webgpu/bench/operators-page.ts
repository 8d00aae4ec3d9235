import { readFileSync, writeFileSync } from 'node:fs';

// docs/results/webgpu-operators.json to webgpu-operators.md beside it.

interface Timed {
  readonly milliseconds: number;
}
interface Product extends Timed {
  readonly width: number;
  readonly out: number;
  readonly shape: string;
  readonly teraflops: number;
  readonly rms?: number;
}
interface Attention extends Timed {
  readonly tokens: number;
  readonly kernel: string;
  readonly teraflops: number;
  readonly rms: number | null;
  readonly run: string;
}
interface Operator extends Timed {
  readonly operator: string;
  readonly tokens: number;
  readonly past: number;
  readonly teraflops?: number;
  readonly kernels: readonly ({ readonly kernel: string } & Timed)[];
}
interface Accuracy {
  readonly test: string;
  readonly mixer: string;
  readonly rms: Readonly<Record<string, number>> | readonly number[];
}

const file = new URL('../../../docs/results/webgpu-operators.json', import.meta.url);
const all = JSON.parse(readFileSync(file, 'utf8'));
const table = (head: string[], rows: (string | number)[][]): string =>
  [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
const bullets = (list: readonly string[]): string => list.map((line) => `- ${line}`).join('\n');
const products = (list: readonly Product[]): string =>
  table(
    ['x', 'y', 'tile: items, outputs, depth, of a subgroup, rounds', 'ms', 'TFLOP/s', 'RMS ratio to before'],
    list.map((p) => [p.width, p.out, p.shape, p.milliseconds.toFixed(3), p.teraflops.toFixed(0), p.rms ?? '']),
  );
const attention = table(
  ['tokens', 'kernel', 'ms', 'TFLOP/s', 'RMS ratio to before', 'when'],
  (all.attention as Attention[]).map((a) => [
    a.tokens,
    a.kernel,
    a.milliseconds.toFixed(2),
    a.teraflops.toFixed(0),
    a.rms?.toExponential(1) ?? '',
    a.run,
  ]),
);
const own = new Set([
  'decays',
  'cumulate-decays',
  'chunk-scores',
  'chunk-states',
  'scan-chunks',
  'scan-chunks-replay',
  'chunk-outputs',
]);
const operators = table(
  ['operator', 'tokens', 'past', 'ms', 'of it decays, states and outputs', 'kernels, ms'],
  (all.operators as Operator[]).map(({ operator, tokens, past, milliseconds, kernels }) => [
    operator,
    tokens,
    past,
    milliseconds.toFixed(2),
    kernels.reduce((sum, k) => sum + (own.has(k.kernel) ? k.milliseconds : 0), 0).toFixed(2),
    kernels.map((k) => `${k.kernel} ${k.milliseconds.toFixed(3)}`).join(', '),
  ]),
);
const accuracy = (all.accuracy as Accuracy[]).map(
  ({ test, mixer, rms }) => `${test} ${mixer}: largest RMS ratio ${Math.max(...Object.values(rms)).toExponential(1)}`,
);

writeFileSync(
  new URL('webgpu-operators.md', file),
  `# WebGPU: operators of a prefill

Rendered from webgpu-operators.json by packages/backend-webgpu/bench/operators-page.ts. ${all.hardware}, driver ${all.driver}, ${all.software}, ${all.date}. Llama2-7B shape (32 heads of 128), float16, 4,096 items in products.

${bullets(all.notes)}

## Products

${products(all.ladder)}

The run before, when lanes wrote 16 bytes each (the last word: views of one memory, or scalars):

${products(all.firstLadder)}

## Attention

${attention}

## Operators

${operators}

${bullets(all.goals)}

## Correctness

Layers of real width in float16 against float32 on the same adapter, 600 tokens; folded states against prefilled ones.

${bullets(accuracy)}

## Commands

${bullets((all.commands as string[]).map((line) => `\`${line}\``))}
`,
);
