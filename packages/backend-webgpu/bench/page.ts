import { readFileSync, writeFileSync } from 'node:fs';
import { type Correct, largest, otherwise, references, roundings, unlike } from './accuracy-page.js';
import { bullets, commands, type Goal, goals, table } from './markdown.js';

// docs/results/webgpu.json to webgpu.md beside it.

interface Run {
  readonly test: string;
  readonly tokens: number;
  readonly batch: number;
  readonly mixer: string;
  readonly level?: number | string;
  readonly milliseconds: { readonly n: number; readonly median: number; readonly sd: number };
}
/** Whole prefills of others: in the same call, or recorded in an earlier one on such a device. */
interface Peer {
  readonly peer: string;
  readonly level?: number;
  readonly tokens: number;
  readonly milliseconds: number;
}
interface KernelRun {
  readonly call: string;
  readonly tape: string;
  readonly kernel: string;
  readonly grid: readonly number[];
  readonly microseconds: number;
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
const outcomes = correct
  .filter(({ others }) => !others)
  .map(({ code, test, computeType, checks, passed, failed, model, type, mixer, rms, greedy }) => {
    if (test === 'conformance') {
      const list = failed!.map(({ name, message }) => `\n  - ${name}: ${message}`).join('');
      return `- ${code}, conformance ${computeType}, checks ${checks}: ${passed} passed, ${failed!.length} failed${list}`;
    }
    const drawn = greedy === undefined ? '' : `, greedy tokens equal: ${greedy}`;
    const what = [test, model, type ?? mixer].filter(Boolean).join(' ');
    return `- ${code}, ${what}: largest RMS ratio ${largest(rms).toExponential(1)}${drawn}`;
  });

const of = (test: string, type?: string): readonly Correct[] =>
  correct.filter((line) => line.test === test && (type === undefined || (line.type ?? line.computeType) === type));
const codeOf = (lines: readonly Correct[]): string => [...new Set(lines.map(({ code }) => code))].join(', ');
/** A goal that lines of the record tell about. */
function told(goal: string, limit: number, lines: readonly Correct[], value: (line: Correct) => number): Goal {
  const measured = lines.length === 0 ? undefined : Math.max(...lines.map(value));
  return { goal, limit, measured, unit: '', code: codeOf(lines) };
}
const rmsOf = ({ rms }: Correct): number => largest(rms);
/** PyTorch in float16 on the tokens of a model, beside ours. */
const besidePeer = correct
  .filter(({ test, type }) => test.startsWith('PyTorch') && type === 'float16')
  .map((peer) => {
    const { model, tokens } = peer;
    const lines = of('reference', 'f16').filter((line) => line.model === model && line.tokens === tokens);
    const goal = `other first tokens than the reference, of ${tokens!.toLocaleString('en-US')}, float16: no more than PyTorch`;
    return told(goal, otherwise(tokens!)(peer), lines, otherwise(tokens!));
  });
const failures = ({ failed }: Correct): number => failed!.length;
const prefills = all.prefill.lines as Run[];
const prefillAt = (tokens: number, level: number): number | undefined =>
  prefills.find((run) => run.level === level && run.tokens === tokens)?.milliseconds.median;
const prefill = (tokens: number) => prefillAt(tokens, 0);
const peers = [...all.prefill.peers, ...all.prefill.recorded] as Peer[];
const shown = (x: number | undefined, digits: number): string => x?.toFixed(digits) ?? '';

/** Forms of the code one after the other in one call. */
interface Comparison {
  readonly title: string;
  readonly text: string;
  readonly commands: readonly string[];
  readonly lines: readonly (Run & { readonly shape: string; readonly layers: number; readonly code: string })[];
}
const comparisons = (all.compared as Comparison[]).map(({ title, text, lines }) => {
  const rows = lines.map(({ test, shape, layers, tokens, batch, code, milliseconds: { median, sd, n } }) => [
    test,
    shape,
    layers,
    tokens,
    batch,
    code,
    median.toFixed(2),
    sd.toFixed(2),
    n,
  ]);
  return `### ${title}\n\n${text}\n\n${table(['test', 'shape', 'layers', 'tokens', 'rows', 'code', 'median ms', 'sd', 'n'], rows)}`;
});

/** Our prefills beside those of others; levels beside level 0 of the same run. */
const beside = table(
  [
    'tokens',
    'of the first layers',
    'median ms',
    'sd',
    'n',
    '/ level 0',
    'PyTorch, ms',
    '/ PyTorch',
    'llama.cpp*, ms',
    'published layer*, ms',
    '/ published',
  ],
  prefills.map(({ tokens, level, milliseconds: { median, sd, n } }) => {
    const of = (peer: string, at?: number) =>
      peers.find((one) => one.peer === peer && one.tokens === tokens && one.level === at)?.milliseconds;
    const published = level === 0 ? undefined : of('published layer', Number(level));
    return [
      tokens,
      level === 0 ? 'softmax' : level,
      median.toFixed(2),
      sd.toFixed(2),
      n,
      level === 0 ? '' : (median / prefill(tokens)!).toFixed(2),
      shown(of('PyTorch'), 1),
      of('PyTorch') === undefined ? '' : (median / of('PyTorch')!).toFixed(2),
      level === 0 ? shown(of('llama.cpp'), 0) : '',
      shown(published, 0),
      published === undefined ? '' : (median / published).toFixed(2),
    ];
  }),
);

/** From which length on a level is faster than level 0: between measured ones by the logarithm of the length. */
function breakEven(level: number): string {
  const ratios = prefills
    .filter((run) => run.level === level)
    .map(({ tokens }) => ({ tokens, ratio: prefillAt(tokens, level)! / prefill(tokens)! }))
    .sort((a, b) => a.tokens - b.tokens);
  const last = ratios.findLastIndex(({ ratio }) => ratio > 1);
  const [below, above] = [ratios[last], ratios[last + 1]];
  if (!above) return `level ${level} is slower than level 0 at every length measured`;
  if (!below) return `level ${level} is faster than level 0 at every length measured, from ${above.tokens} tokens on`;
  const part = (below.ratio - 1) / (below.ratio - above.ratio);
  const tokens = below.tokens * (above.tokens / below.tokens) ** part;
  return `level ${level} is faster than level 0 from about ${(100 * Math.round(tokens / 100)).toLocaleString('en-US')} tokens on`;
}
const breakEvens = [16, 32].map(breakEven).join('; ');
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
  told('logits in float32 against golden ones, RMS ratio', 1e-5, of('golden', 'f32'), rmsOf),
  told('logits in float16 against golden ones, RMS ratio', 5e-3, of('golden', 'f16'), rmsOf),
  told(
    'other first tokens than the reference, of the first 1,000, float32',
    0,
    of('reference', 'f32'),
    otherwise(1000),
  ),
  told(
    'other first tokens than the reference, of the first 1,000, float16',
    0,
    of('reference', 'f16'),
    otherwise(1000),
  ),
  told(
    'the same of all 10,000, where its first two are a step of float16 or more apart',
    0,
    of('reference', 'f16'),
    unlike,
  ),
  ...besidePeer,
  told('folded states against prefilled ones in float16, RMS ratio', 1e-3, of('fold'), rmsOf),
  told('cases of the conformance suite that fail, float32', 0, of('conformance', 'f32'), failures),
  told('cases of the conformance suite that fail, float16', 0, of('conformance', 'f16'), failures),
]);

writeFileSync(
  new URL('webgpu.md', file),
  `# WebGPU backend on a GPU

Rendered from webgpu.json by packages/backend-webgpu/bench/page.ts. ${all.hardware}, driver ${all.driver}, ${all.software}, ${all.date}. Llama2-7B shape, random weights, float16. Times of whole models run from recording on the host to the logits on the host. Decoding: [webgpu-decode.md](webgpu-decode.md); operators of a prefill and what each version of their kernels brought: [webgpu-operators.md](webgpu-operators.md).

## Against the goals

${reached}

## Prefill at ${all.prefill.code}

Break-even: ${breakEvens}. PyTorch: the same shape and SDPA, by the device's own clock. * recorded in an earlier call on such a device; the published layer is DSLA's release with its Triton kernels.

${beside}

${bullets(all.prefill.notes)}

## Forms of the code side by side

Each in turn, in one call. Tokens: of a prefill, or the context of every row; a decode step from one token on the host to the next, or of its dispatches alone by the device's clock.

${comparisons.join('\n\n')}

## Prefill of Zamba-7B's shape at ${all.zamba.code}

${runs(all.zamba.lines)}

Its kernels for 4,096 tokens at ${all.zamba.kernelsCode}, those alike once: layers.0 is a Mamba layer, layers.2 has the shared block too.

${kernels(all.zamba.kernels)}

## Correctness

On ${all.correct.hardware}. Golden logits: 64 tokens. Layers: of real width, float16 against float32 on the same adapter, 600 tokens. Folds: folded states against prefilled ones.

${outcomes.join('\n')}

Logits against the float64 reference, on the prompts of bench/accuracy-ids.json: in one step (prefill) or a token a step (decode). RMS of 32 logits a token, for PyTorch of all. Where another token is first, how far apart the reference has its first two at most; also in steps, from one number of float16 to the next, of the size of its first.

${references([...correct, ...(all.correct.before as Correct[])])}

${bullets(all.correct.notes)}

Where the differences in float16 come from: llama-4m in float64 with values rounded where the kernels round them (accuracy-roundings.py), on the same tokens. What each rounding by itself has of the squared error of all (before: at 8d9a469); then the same roundings drawn anew, of the values in other units: whether all tokens of a prompt agree is a matter of chance where the reference has two of them close together.

${roundings(all.correct.roundings)}

## Whole model, ${all.earlier.code}

${runs(all.earlier.runs)}

## The first kernels

${runs(all.before.runs)}

${kernels(all.before.kernels)}

## After the first changes

${all.changes.map((line: string) => `- ${line}`).join('\n')}

${kernels(all.after.kernels)}

## Commands

${commands([...all.prefill.commands, ...(all.compared as Comparison[]).flatMap(({ commands }) => commands), ...all.zamba.commands, ...all.correct.commands, ...all.earlier.commands])}
`,
);
