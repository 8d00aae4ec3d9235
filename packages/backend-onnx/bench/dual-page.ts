// docs/results/onnx-dual.json, from the lines that dual.ts, cuda.ts, conformance.ts and dual-peer.py printed on a GPU host, to onnx-dual.md:
//   node --import tsx packages/backend-onnx/bench/dual-page.ts LINES.jsonl...
// Without files the JSON is rendered as it is.
import { readFileSync, writeFileSync } from 'node:fs';
import type { Statistics } from '../../backend-webgpu/bench/synthetic.js';

/** A line as it was printed. */
interface Line {
  readonly test?: string;
  /** Of dual.ts: milliseconds of one operator, from programs with few and more of them. */
  readonly form?: string;
  readonly operator?: number | string;
  readonly less?: Timed;
  readonly all?: Timed;
  readonly copies?: number;
  /** Of dual-peer.py. */
  readonly peer?: string;
  readonly versions?: string;
  readonly plan?: string;
  readonly tokens?: number;
  readonly batch?: number;
  readonly layers?: number;
  readonly milliseconds?: Statistics | number;
  readonly inSessions?: number;
  readonly replayed?: boolean;
  readonly error?: string;
  readonly command?: string;
  readonly device?: string;
  readonly node?: string;
  readonly code?: string;
  readonly date?: string;
  readonly driver?: string;
  readonly computeType?: string;
  readonly passed?: number;
  readonly failed?: readonly { readonly name: string; readonly message: string }[];
}

interface Timed {
  readonly milliseconds: Statistics;
  readonly replayed: boolean;
}

/**
 * What is asked for: so many times what flash-linear-attention's chunk_gla (one state, per-channel gates) takes. In an earlier call on
 * a device of this kind that was 0.94 ms for 8,192 tokens and 2.86 ms for 32,768.
 */
const earlier: Readonly<Record<number, number>> = { 8192: 0.94, 32768: 2.86 };
const goals: Readonly<Record<string, number>> = { scalar: 1.5, vector: 2.5 };

const file = new URL('../../../docs/results/onnx-dual.json', import.meta.url);
const given = process.argv.slice(2);
const lines =
  given.length > 0
    ? given
        .flatMap((path) => readFileSync(path, 'utf8').split('\n').filter(Boolean))
        .map((text) => JSON.parse(text) as Line)
    : (JSON.parse(readFileSync(file, 'utf8')) as Line[]);
writeFileSync(file, `[\n${lines.map((line) => `  ${JSON.stringify(line)}`).join(',\n')}\n]\n`);
writeFileSync(new URL('onnx-dual.md', file), render(lines));

function render(all: readonly Line[]): string {
  const host = all.find(({ test }) => test === 'host');
  const operators = all.filter(({ test, tokens }) => test === 'operator' && tokens! >= 1024);
  const runs = all.filter(({ plan, tokens }) => plan !== undefined && tokens !== undefined);
  const peers = all.filter(({ peer }) => peer !== undefined);
  const commands = new Set([...operators, ...runs].map(({ command }) => command));
  return `# Dual linear attention: ONNX Runtime on CUDA

Rendered from onnx-dual.json by packages/backend-onnx/bench/dual-page.ts. ${operators[0]?.device}, Node ${operators[0]?.node}, driver
${host?.driver}, code of commit ${host?.code}, ${host?.date}. Shape of Llama2-7B, random weights, two states.

## The operator alone

32 heads of 128, one prompt, no projections. Milliseconds that each further operator of a program takes on the computing thread; the
spread is that of the two medians. "/ goal's peer" is against flash-linear-attention's chunk_gla (one state, per-channel gates) in an
earlier call on such a device, from which the goals were made: ${Object.entries(earlier)
    .map(([tokens, ms]) => `${ms} ms at ${tokens} tokens`)
    .join(', ')}; "/ chunk_gla" and "/ SDPA" against the peers
below, timed on the same host within minutes.

${table(
  [
    'gates',
    'tokens',
    'milliseconds',
    'spread',
    'n',
    'recorded graph',
    "/ goal's peer",
    'goal',
    '/ chunk_gla',
    '/ SDPA',
  ],
  operators.map((line) => operatorCells(line, all)),
)}

${table(
  ['peer', 'tokens', 'milliseconds', 'sd', 'n', 'versions'],
  peers.map(({ peer, tokens, milliseconds, versions }) => {
    const { median, sd, n } = milliseconds as Statistics;
    return [peer, tokens, median.toFixed(2), sd.toFixed(3), n, versions];
  }),
)}

## In a model

Milliseconds from recording a step on the host to the tokens on the host; "in sessions" is the part on the computing thread. A plan is a
mixer and how many of the first layers take it; "/ level 0" is against softmax attention throughout in the same call. Folds turn the
cache of one layer into states.

${table(
  ['layers', 'test', 'plan', 'tokens', 'rows', 'median', 'sd', 'n', 'in sessions', 'recorded graph', '/ level 0'],
  runs.map((run) => runCells(run, runs)),
)}

## Conformance

${all
  .filter(({ test }) => test === 'conformance')
  .map(
    ({ computeType, passed, failed }) =>
      `- ${computeType}: ${passed} passed, ${failed!.length} failed${failed!.map(({ name, message }) => `\n  - ${name}: ${message}`).join('')}`,
  )
  .join('\n')}

## Commands

${[...commands].map((command) => `- \`${command}\``).join('\n')}
`;
}

type Cell = string | number | undefined;

function operatorCells({ form, tokens, operator, less, all: more, copies, error }: Line, all: readonly Line[]): Cell[] {
  if (error || typeof operator !== 'number') return [form, tokens, error, '', '', '', '', '', '', ''];
  const spread = Math.hypot(less!.milliseconds.sd, more!.milliseconds.sd) / copies!;
  const of = (peer: string): number | undefined =>
    (all.find((line) => line.peer === peer && line.tokens === tokens)?.milliseconds as Statistics | undefined)?.median;
  const ratio = (to: number | undefined): string => (to === undefined ? '-' : (operator / to).toFixed(2));
  const graph = less!.replayed && more!.replayed ? 'yes' : 'no';
  const { n } = more!.milliseconds;
  return [
    form,
    tokens,
    operator.toFixed(2),
    spread.toFixed(3),
    n,
    graph,
    ratio(earlier[tokens!]),
    goals[form!] ?? '-',
    ratio(of('chunk_gla')),
    ratio(of('SDPA')),
  ];
}

function runCells(run: Line, runs: readonly Line[]): Cell[] {
  const { layers, test, plan, tokens, batch, error, inSessions, replayed } = run;
  if (error) return [layers, test, plan, tokens, batch, error, '', '', '', '', ''];
  const { median, sd, n } = run.milliseconds as Statistics;
  const base = runs.find(
    (other) =>
      other.plan === 'default:0' &&
      !other.error &&
      other.test === test &&
      other.tokens === tokens &&
      other.batch === batch &&
      other.command === run.command,
  );
  const ratio = base ? (median / (base.milliseconds as Statistics).median).toFixed(2) : '-';
  const graph = replayed === undefined ? '-' : replayed ? 'yes' : 'no';
  return [
    layers,
    test,
    plan,
    tokens,
    batch,
    median.toFixed(2),
    sd.toFixed(2),
    n,
    inSessions?.toFixed(2) ?? '-',
    graph,
    ratio,
  ];
}

function table(head: readonly string[], rows: readonly (readonly Cell[])[]): string {
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
}
