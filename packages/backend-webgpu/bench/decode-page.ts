import { readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { copyRate, fixed, floor, type Line, nameOf, type Peer } from './decode-lines.js';
import { bullets, table } from './markdown.js';

// docs/results/webgpu-decode.json to webgpu-decode.md beside it. With --step, what decode.bench.ts printed into --lines joins the
// JSON first as a new step of the ladder, and what peers.py printed into --peers takes the place of the peers before.

interface Cut {
  readonly name: string;
  readonly rows: number;
  readonly team: number;
  readonly unroll: number;
  readonly microseconds: number;
  readonly gigabytesPerSecond: number;
}
/** A form of some kernels, timed in turn with others of its call: a step of eight layers with the head. */
interface Form {
  readonly of: string;
  readonly call: number;
  readonly form: string;
  readonly shape: string;
  readonly weights: string;
  readonly tokens: number;
  readonly batch: number;
  /** Median of a layer. */
  readonly microseconds: number;
  readonly sd: number;
  readonly n: number;
}
/** A dispatch, or several, over and over on matrices that take turns. */
interface Probe {
  readonly probe: string;
  readonly megabytes?: number;
  readonly microseconds: number;
}
interface Results {
  readonly hardware: string;
  readonly driver: string;
  readonly software: string;
  readonly date: string;
  readonly ladder: readonly { readonly step: string; readonly runs: readonly Line[] }[];
  readonly peers: readonly Peer[];
  readonly cuts: readonly Cut[];
  readonly forms: readonly Form[];
  readonly probes: readonly Probe[];
  readonly findings: readonly string[];
  readonly open: readonly string[];
  readonly commands: readonly string[];
}

const { values: options } = parseArgs({
  options: { step: { type: 'string' }, lines: { type: 'string', default: '' }, peers: { type: 'string' } },
});
const file = new URL('../../../docs/results/webgpu-decode.json', import.meta.url);
const linesOf = (path: string): unknown[] =>
  readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line));
let all = JSON.parse(readFileSync(file, 'utf8')) as Results;
if (options.step !== undefined) {
  const added = { step: options.step, runs: linesOf(options.lines) as Line[] };
  const peers = options.peers === undefined ? all.peers : (linesOf(options.peers) as Peer[]);
  all = { ...all, ladder: [...all.ladder, added], peers };
  writeFileSync(file, `${JSON.stringify(all, null, 1)}\n`);
}

const rate = copyRate(all.peers);

const ladder = all.ladder.flatMap(({ step, runs }) =>
  runs.map((run) => [
    step,
    nameOf(run),
    run.tokens,
    run.batch,
    fixed(run.milliseconds),
    run.milliseconds.sd.toFixed(2),
    fixed(run.drawn),
    run.drawn?.sd.toFixed(2) ?? '–',
    run.milliseconds.n,
    fixed(run.gpu?.milliseconds),
    run.gpu?.dispatches ?? '–',
    floor(run, rate).toFixed(2),
    ((run.drawn ?? run.milliseconds).median / floor(run, rate)).toFixed(2),
  ]),
);

const last = all.ladder.at(-1)!;
const peers = all.peers.flatMap(({ peer, tokens, batch, milliseconds }) => {
  const own = last.runs.find((run) => run.tokens === tokens && run.batch === batch && nameOf(run) === 'llama2-7b f16');
  if (peer !== 'decode' || !own?.drawn) return [];
  return [
    [
      tokens,
      batch,
      fixed(milliseconds),
      milliseconds.sd.toFixed(2),
      fixed(own.drawn),
      (own.drawn.median / milliseconds.median).toFixed(2),
      floor(own, rate).toFixed(2),
    ],
  ];
});

const kernelsOf = (run: Line): string => {
  const rows = run.gpu!.kernels.map(({ kernel, grid, count, microseconds }) => [
    kernel,
    grid.join(' x '),
    count,
    microseconds.toFixed(1),
    ((count * microseconds) / 1000).toFixed(2),
  ]);
  return `### ${nameOf(run)}, context ${run.tokens}, batch ${run.batch}

${table(['kernel', 'workgroups', 'times a step', 'µs each', 'ms a step'], rows)}`;
};

const cuts = [...new Set(all.cuts.map(({ name }) => name))].flatMap((name) =>
  all.cuts
    .filter((cut) => cut.name === name)
    .sort((a, b) => a.microseconds - b.microseconds)
    .slice(0, 2)
    .map((cut) => [
      name,
      cut.rows,
      cut.team,
      cut.unroll,
      cut.microseconds.toFixed(1),
      cut.gigabytesPerSecond.toFixed(0),
    ]),
);

const forms = all.forms.map(({ of, call, form, shape, weights, tokens, batch, microseconds, sd, n }) => [
  of,
  call,
  `${shape} ${weights}`,
  tokens,
  batch,
  form,
  microseconds.toFixed(1),
  sd.toFixed(2),
  n,
]);

const probes = all.probes.map(({ probe, megabytes, microseconds }) => [
  probe,
  megabytes?.toFixed(1) ?? '–',
  microseconds.toFixed(2),
]);

writeFileSync(
  new URL('webgpu-decode.md', file),
  `# Decoding with the WebGPU backend

Rendered from webgpu-decode.json by packages/backend-webgpu/bench/decode-page.ts. ${all.hardware}, driver ${all.driver}, ${all.software}, ${all.date}. Random weights. Floor: the bytes of products and states read once at ${rate.toFixed(0)} GB/s, the rate at which PyTorch copies.

- logits: median milliseconds from recording on the host to the logits on the host, one step at a time
- token: from one token on the host to the next, when tokens are drawn on the device (the most likely one) and the next step is recorded before the last is back
- device: of the step's dispatches alone, by the device's clock
- times the floor: of token; of logits where tokens were not drawn

${table(['step', 'model', 'context', 'batch', 'logits', 'sd', 'token', 'sd', 'n', 'device', 'dispatches', 'floor', 'times the floor'], ladder)}

## PyTorch

Compiled layers, static cache, the whole step as one CUDA graph, the most likely token drawn; in the call of the last step.

${table(['context', 'batch', 'PyTorch ms', 'sd', 'ours: token', 'ours / PyTorch', 'floor'], peers)}

## What was found

${bullets(all.findings)}

## Open

${bullets(all.open)}

## Where the time of the last step goes

By how much the step is shorter without a kernel.

${last.runs
  .filter(({ gpu }) => gpu)
  .map(kernelsOf)
  .join('\n\n')}

## Forms side by side

Forms of attention and of products beside those of 67fa694, timed in turn in one process by switches that were not kept: µs a layer of a step of eight layers with the head, by the device's clock. Compare within a call: its clock is its own.

${table(['of', 'call', 'model', 'context', 'batch', 'form', 'µs a layer', 'sd', 'n'], forms)}

## Dispatches alone, matrices in 4 bits

Of one layer, over and over on matrices of several layers that take turns, in calls of their own; the fastest of their cuts, by kernels that served this question alone and were not kept. Medians; of three products in one dispatch, and of the three beside it, the shortest pass.

${table(['what', 'MB', 'µs'], probes)}

## Products alone

Earlier kernels, each alone on matrices that take turns (about 300 MB of them); two fastest cuts of each, float16.

${table(['product', 'outputs a team', 'subgroups a team', 'loads at once', 'µs', 'GB/s'], cuts)}

## Commands

${bullets(all.commands.map((line) => `\`${line}\``))}
`,
);
