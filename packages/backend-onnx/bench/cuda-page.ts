// docs/results/onnx-cuda.json, from the lines that cuda.ts, conformance.ts and the peer printed on a GPU host, to onnx-cuda.md:
//   node --import tsx packages/backend-onnx/bench/cuda-page.ts LINES.jsonl...   (without files: renders the JSON as it is)
import { readFileSync, writeFileSync } from 'node:fs';
import type { Statistics } from '../../backend-webgpu/bench/synthetic.js';

/** A line as it was printed. */
interface Line {
  readonly test?: string;
  readonly peer?: string;
  readonly plan?: string;
  readonly tokens?: number;
  readonly batch?: number;
  readonly milliseconds?: Statistics | number;
  /** Median of the time on the computing thread. */
  readonly inSessions?: number;
  /** Of one step. */
  readonly copied?: { readonly toDevice: number; readonly toHost: number };
  readonly memory?: number;
  readonly error?: string;
  readonly device?: string;
  readonly node?: string;
  readonly shape?: string;
  readonly computeType?: string;
  readonly passed?: number;
  readonly failed?: readonly { readonly name: string; readonly message: string }[];
  readonly gbps?: number;
  readonly versions?: string;
  readonly driver?: string;
  readonly date?: string;
  readonly [more: string]: unknown;
}

const file = new URL('../../../docs/results/onnx-cuda.json', import.meta.url);
const given = process.argv.slice(2);
if (given.length > 0) {
  const lines = given.flatMap((path) => readFileSync(path, 'utf8').split('\n').filter(Boolean));
  writeFileSync(file, `[\n${lines.map((line) => `  ${line}`).join(',\n')}\n]\n`);
}
const lines = JSON.parse(readFileSync(file, 'utf8')) as Line[];
writeFileSync(new URL('onnx-cuda.md', file), render(lines));

function render(all: readonly Line[]): string {
  const host = all.find(({ test }) => test === 'host');
  const bandwidth = all.find(({ peer, gbps }) => peer === 'device copy' && gbps)?.gbps;
  const runs = all.filter(({ tokens, test }) => test && tokens !== undefined);
  const first = runs.find(({ device }) => device);
  const peers = all.filter(({ peer, tokens }) => peer && tokens !== undefined);
  const weights = all.find(({ test, plan }) => test === 'compile' && plan === 'default:0')?.memory;
  return `# ONNX Runtime on CUDA

Rendered from onnx-cuda.json by packages/backend-onnx/bench/cuda-page.ts. ${first?.device}, driver ${host?.driver}, Node ${first?.node},
${host?.date}. ${first?.shape} shape, random weights. Times in milliseconds from recording a step on the host to the logits on the
host; "in sessions" is the part on the computing thread. A plan is a mixer and how many of the first layers take it.

## Whole model

${table(
  [
    'test',
    'plan',
    'tokens',
    'rows',
    'median',
    'sd',
    'n',
    'in sessions',
    'bytes to device',
    'bytes to host',
    'against level 0',
  ],
  runs.map((run) => [
    run.test,
    run.plan,
    run.tokens,
    run.batch,
    ...(run.error
      ? [run.error, '', '', '', '', '', '']
      : [...figures(run), run.inSessions?.toFixed(2), run.copied?.toDevice, run.copied?.toHost, ratio(run, runs)]),
  ]),
)}

## Peers, in the same call

${table(
  ['peer', 'tokens', 'median', 'sd', 'n', 'ours / peer'],
  peers.map((peer) => [peer.peer, peer.tokens, ...figures(peer), against(peer, runs)]),
)}

${
  bandwidth && weights
    ? `A device copy moves ${bandwidth.toFixed(0)} GB/s (read and write). At that rate the weights, ${(weights / 1e9).toFixed(2)} GB, are read in
${(weights / bandwidth / 1e6).toFixed(2)} ms, the floor of a decode step without its cache.`
    : ''
}

## Conformance

${all
  .filter(({ test }) => test === 'conformance')
  .map(
    ({ computeType, passed, failed }) =>
      `- ${computeType}: ${passed} passed, ${failed!.length} failed${failed!.map(({ name, message }) => `\n  - ${name}: ${message}`).join('')}`,
  )
  .join('\n')}
`;
}

function figures({ milliseconds }: Line): string[] {
  const { median, sd, n } = milliseconds as Statistics;
  return [median.toFixed(2), sd.toFixed(2), String(n)];
}

const median = ({ milliseconds }: Line): number => (milliseconds as Statistics).median;

/** The same test with softmax attention throughout is 1. */
function ratio(run: Line, runs: readonly Line[]): string {
  const base = runs.find(
    (other) =>
      other.plan === 'default:0' &&
      !other.error &&
      other.test === run.test &&
      other.tokens === run.tokens &&
      other.batch === run.batch,
  );
  return base ? (median(run) / median(base)).toFixed(2) : '-';
}

function against(peer: Line, runs: readonly Line[]): string {
  const ours = runs.find(
    ({ test, plan, tokens, batch, error }) =>
      plan === 'default:0' && batch === 1 && !error && tokens === peer.tokens && peer.peer?.startsWith(`${test},`),
  );
  return ours ? (median(ours) / median(peer)).toFixed(2) : '-';
}

function table(head: readonly string[], rows: readonly (readonly (string | number | undefined)[])[]): string {
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
}
