import { readFileSync, writeFileSync } from 'node:fs';
import { commands, goals, table } from './markdown.js';

// docs/results/webgpu.json to webgpu.md beside it.

interface Run {
  readonly test: string;
  readonly tokens: number;
  readonly batch: number;
  readonly mixer: string;
  readonly level?: number | string;
  readonly milliseconds: { readonly n: number; readonly median: number; readonly sd: number };
}
interface KernelRun {
  readonly call: string;
  readonly tape: string;
  readonly kernel: string;
  readonly grid: readonly number[];
  readonly microseconds: number;
}
interface Correct {
  readonly test: string;
  readonly computeType?: string;
  readonly checks?: string;
  readonly passed?: number;
  readonly failed?: readonly { readonly name: string; readonly message: string }[];
  readonly type?: string;
  readonly tokens?: number;
  readonly mixer?: string;
  readonly rms?: number | Readonly<Record<string, number>> | readonly number[];
  readonly greedy?: string;
  /** Tokens at which the same one is first. */
  readonly first?: number;
}

const file = new URL('../../../docs/results/webgpu.json', import.meta.url);
const all = JSON.parse(readFileSync(file, 'utf8'));
const runs = (list: readonly Run[]): string =>
  table(
    ['test', 'tokens', 'batch', 'mixer', 'of the first layers', 'median ms', 'sd', 'n'],
    list.map(({ test, tokens, batch, mixer, level, milliseconds: { median, sd, n } }) => [
      test,
      tokens,
      batch,
      level === 0 ? 'default' : mixer,
      mixer === 'default' || level === '999' || level === 0 ? 'all' : level,
      median.toFixed(2),
      sd.toFixed(2),
      n,
    ]),
  );
const kernels = (list: readonly KernelRun[]): string =>
  table(
    ['call', 'tape', 'kernel', 'workgroups', 'µs'],
    list.map((k) => [k.call, k.tape, k.kernel, k.grid.join(' x '), k.microseconds.toFixed(1)]),
  );
const correct = all.correct.lines as Correct[];
const largest = (rms: Correct['rms']): number =>
  typeof rms === 'number' ? rms : Math.max(...Object.values(rms ?? {}));
const outcomes = correct.map(
  ({ test, computeType, checks, passed, failed, type, tokens, mixer, rms, greedy, first }) => {
    if (test === 'conformance') {
      const list = failed!.map(({ name, message }) => `\n  - ${name}: ${message}`).join('');
      return `- conformance ${computeType}, checks ${checks}: ${passed} passed, ${failed!.length} failed${list}`;
    }
    const same = first === undefined ? '' : `, the same token first at ${first} of ${tokens}`;
    const drawn = greedy === undefined ? '' : `, greedy tokens equal: ${greedy}`;
    return `- ${test} ${type ?? mixer}: largest RMS ratio ${largest(rms).toExponential(1)}${drawn}${same}`;
  },
);

const { code } = all.correct as { code: string };
const worst = (test: string, type?: string): number | undefined => {
  const lines = correct.filter((line) => line.test === test && (type === undefined || line.type === type));
  return lines.length === 0 ? undefined : Math.max(...lines.map(({ rms }) => largest(rms)));
};
const failures = (type: string) =>
  correct
    .filter((line) => line.test === 'conformance' && line.computeType === type)
    .reduce((n, c) => n + c.failed!.length, 0);
const otherwise = (type: string): number | undefined => {
  const line = correct.find((one) => one.test === 'reference' && one.type === type);
  return line && line.tokens! - line.first!;
};
const prefill = (tokens: number): number | undefined =>
  (all.prefill.lines as Run[]).find((run) => run.level === 0 && run.tokens === tokens)?.milliseconds.median;
// What llama.cpp's Vulkan backend took on such a device in an earlier call.
const reached = goals([
  {
    goal: 'prefill of 4,096 tokens: faster than llama.cpp',
    limit: 312,
    measured: prefill(4096),
    unit: 'ms',
    code: all.prefill.code,
  },
  {
    goal: 'prefill of 8,192 tokens: faster than llama.cpp',
    limit: 648,
    measured: prefill(8192),
    unit: 'ms',
    code: all.prefill.code,
  },
  {
    goal: 'logits in float32 against golden ones, RMS ratio',
    limit: 1e-5,
    measured: worst('golden', 'f32'),
    unit: '',
    code,
  },
  {
    goal: 'logits in float16 against golden ones, RMS ratio',
    limit: 5e-3,
    measured: worst('golden', 'f16'),
    unit: '',
    code,
  },
  {
    goal: 'other first tokens than the reference, of 1,000, float32',
    limit: 0,
    measured: otherwise('f32'),
    unit: '',
    code,
  },
  {
    goal: 'other first tokens than the reference, of 1,000, float16',
    limit: 0,
    measured: otherwise('f16'),
    unit: '',
    code,
  },
  {
    goal: 'folded states against prefilled ones in float16, RMS ratio',
    limit: 1e-3,
    measured: worst('fold'),
    unit: '',
    code,
  },
  { goal: 'cases of the conformance suite that fail, float32', limit: 0, measured: failures('f32'), unit: '', code },
  {
    goal: 'cases of the conformance suite that fail, float16, twice',
    limit: 0,
    measured: failures('f16'),
    unit: '',
    code,
  },
]);

writeFileSync(
  new URL('webgpu.md', file),
  `# WebGPU backend on a GPU

Rendered from webgpu.json by packages/backend-webgpu/bench/page.ts. ${all.hardware}, driver ${all.driver}, ${all.software}, ${all.date}. Llama2-7B shape, random weights, float16. Times of whole models run from recording on the host to the logits on the host. Decoding: [webgpu-decode.md](webgpu-decode.md); operators of a prefill and what each version of their kernels brought: [webgpu-operators.md](webgpu-operators.md).

## Against the goals

${reached}

Prefill was timed before 957d0d2, whose kernels the operators' page shows to be faster; and with clocks still rising in the first lines (see there), so with a large spread.

## Prefill at ${all.prefill.code}

${runs(all.prefill.lines)}

## Correctness at ${code}

Golden logits: 64 tokens of llama-4m. Layers: of real width, float16 against float32 on the same adapter, 600 tokens. Folds: folded states against prefilled ones.

${outcomes.join('\n')}

## Whole model, ${all.earlier.code}

${runs(all.earlier.runs)}

## The first kernels

${runs(all.before.runs)}

${kernels(all.before.kernels)}

## After the first changes

${all.changes.map((line: string) => `- ${line}`).join('\n')}

${kernels(all.after.kernels)}

## Commands

${commands([all.prefill.command, ...all.correct.commands, ...all.earlier.commands])}
`,
);
