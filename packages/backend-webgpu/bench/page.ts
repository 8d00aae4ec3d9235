import { readFileSync, writeFileSync } from 'node:fs';

// docs/results/webgpu.json to webgpu.md beside it.

interface Run {
  test: string;
  tokens: number;
  batch: number;
  mixer: string;
  level?: string;
  milliseconds: { n: number; median: number; sd: number };
}
interface KernelRun {
  call: string;
  tape: string;
  kernel: string;
  grid: number[];
  microseconds: number;
}
interface Correct {
  test: string;
  computeType?: string;
  checks?: string;
  passed?: number;
  failed?: { name: string; message: string }[];
  type?: string;
  mixer?: string;
  rms?: unknown;
  greedy?: string;
}
interface Peer {
  peer: string;
  tokens?: number;
  ms?: number;
  gbps?: number;
}

const file = new URL('../../../docs/results/webgpu.json', import.meta.url);
const all = JSON.parse(readFileSync(file, 'utf8'));
const table = (head: string[], rows: (string | number)[][]): string =>
  [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
const runs = (list: Run[]): string =>
  table(
    ['test', 'tokens', 'batch', 'mixer', 'first layers', 'median ms', 'sd', 'n'],
    list.map(({ test, tokens, batch, mixer, level, milliseconds: { median, sd, n } }) => [
      test,
      tokens,
      batch,
      mixer,
      mixer === 'default' || level === '999' ? 'all' : (level ?? ''),
      median.toFixed(2),
      sd.toFixed(2),
      n,
    ]),
  );
const kernels = (list: KernelRun[]): string =>
  table(
    ['call', 'tape', 'kernel', 'workgroups', 'µs'],
    list.map((k) => [k.call, k.tape, k.kernel, k.grid.join(' x '), k.microseconds.toFixed(1)]),
  );
const correct = (all.correct as Correct[]).map((c) =>
  c.test === 'conformance'
    ? `- conformance ${c.computeType}, checks ${c.checks}: ${c.passed} passed, ${c.failed!.length} failed${c.failed!.map((f) => `\n  - ${f.name}: ${f.message}`).join('')}`
    : `- ${c.test} ${c.type ?? ''}${c.mixer ?? ''}: RMS ratio ${JSON.stringify(c.rms)}${c.greedy ? `, greedy tokens equal: ${c.greedy}` : ''}`,
);
const peers = (all.peers as Peer[]).map((p) =>
  p.gbps
    ? `- PyTorch device copy: ${p.gbps.toFixed(0)} GB/s (read + write)`
    : `- PyTorch SDPA, causal, 32 heads of 128, ${p.tokens} tokens: ${p.ms!.toFixed(2)} ms`,
);

writeFileSync(
  new URL('webgpu.md', file),
  `# WebGPU backend on a GPU

Rendered from webgpu.json by packages/backend-webgpu/bench/page.ts. ${all.hardware}, driver ${all.driver}, ${all.software}, ${all.date}. Llama2-7B shape, random weights, float16. Times of whole models run from recording on the host to the logits on the host.

## Whole model

${runs(all.runs)}

${peers.join('\n')}

## Against the goals

${all.goals.map((line: string) => `- ${line}`).join('\n')}

## Correctness

${correct.join('\n')}

## Kernels before the changes

${runs(all.before.runs)}

${kernels(all.before.kernels)}

## Kernels after

${all.changes.map((line: string) => `- ${line}`).join('\n')}

${kernels(all.after.kernels)}

## Commands

${all.commands.map((line: string) => `- \`${line}\``).join('\n')}
`,
);
