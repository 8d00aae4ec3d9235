import { readFileSync, writeFileSync } from 'node:fs';
import type { Statistics } from './synthetic.js';

// docs/results/webgpu-decode.json to webgpu-decode.md beside it.

interface Run {
  readonly tokens: number;
  readonly batch: number;
  readonly milliseconds: Statistics;
}
interface Cut {
  readonly name: string;
  readonly rows: number;
  readonly team: number;
  readonly unroll: number;
  readonly microseconds: number;
  readonly gigabytesPerSecond: number;
}
interface KernelRun {
  readonly tape: string;
  readonly kernel: string;
  readonly grid: readonly number[];
  readonly microseconds: number;
}

const file = new URL('../../../docs/results/webgpu-decode.json', import.meta.url);
const all = JSON.parse(readFileSync(file, 'utf8'));
const table = (head: readonly string[], rows: readonly (readonly (string | number)[])[]): string =>
  [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
const list = (lines: readonly string[]): string => lines.map((line) => `- ${line}`).join('\n');

// Llama2-7B: bytes of its products and of a token of its cache, in float16.
const products = 2 * (32 * (4 * 4096 ** 2 + 3 * 4096 * 11008) + 32000 * 4096);
const perToken = 2 * 32 * 2 * 4096;
const floor = ({ tokens, batch }: Run): number => (products + batch * tokens * perToken) / all.copy.gbps / 1e6;

const ladder = (all.ladder as { step: string; runs: Run[] }[]).flatMap(({ step, runs }) =>
  runs.map((run) => [
    step,
    run.tokens,
    run.batch,
    run.milliseconds.median.toFixed(2),
    run.milliseconds.sd.toFixed(2),
    run.milliseconds.n,
    floor(run).toFixed(2),
    (run.milliseconds.median / floor(run)).toFixed(2),
  ]),
);
const kernels = (all.kernels as KernelRun[]).map(({ tape, kernel, grid, microseconds }) => [
  tape,
  kernel,
  grid.join(' x '),
  microseconds.toFixed(1),
]);
const cutsOf = (runs: readonly Cut[]) =>
  [...new Set(runs.map(({ name }) => name))].flatMap((name) =>
    [
      ...new Map(
        runs.flatMap((cut) => (cut.name === name ? [[`${cut.rows} ${cut.team} ${cut.unroll}`, cut]] : [])),
      ).values(),
    ]
      .sort((a, b) => a.microseconds - b.microseconds)
      .slice(0, 4)
      .map((cut) => [
        name,
        cut.rows,
        cut.team,
        cut.unroll,
        cut.microseconds.toFixed(1),
        cut.gigabytesPerSecond.toFixed(0),
      ]),
  );
const cutHead = ['product', 'outputs a team', 'subgroups a team', 'loads at once', 'µs', 'GB/s'];
const host = Object.entries(all.host as Record<string, { record: Statistics; submit: Statistics }[]>).flatMap(
  ([when, runs]) =>
    runs.map(({ record, submit }) => [when, record.median.toFixed(2), submit.median.toFixed(2), record.n]),
);

writeFileSync(
  new URL('webgpu-decode.md', file),
  `# Decoding with the WebGPU backend

Rendered from webgpu-decode.json by packages/backend-webgpu/bench/decode-page.ts. ${all.hardware}, driver ${all.driver}, ${all.software}, ${all.date}. Llama2-7B shape, random weights, float16, from recording on the host to the logits on the host. Floor: products and cache read once at ${all.copy.gbps.toFixed(0)} GB/s, the rate at which PyTorch copied in the earlier call.

${table(['step', 'context', 'batch', 'median ms', 'sd', 'n', 'floor ms', 'times the floor'], ladder)}

${list(all.findings)}

## Open

${list(all.open)}

## Kernels of one layer at context 512, second row

Repeated on the same buffers, so small matrices may come from the cache.

${table(['tape', 'kernel', 'workgroups', 'µs'], kernels)}

## Cuts of the products

Matrices take turns, so that none is in the cache; four fastest cuts of each. float16:

${table(cutHead, cutsOf(all.cuts))}

4 bits, numbers unpacked as they are read (these kernels were replaced):

${table(cutHead, cutsOf(all.unpacked))}

## The host's share

Milliseconds of a step of 32 layers on Dawn's null backend, which does nothing with its commands; two shared processor cores with other work running, so only the ratio counts. In turns.

${table(['', 'recording', 'encoding and submit', 'n'], host)}

## Commands

${list(all.commands.map((line: string) => `\`${line}\``))}
`,
);
