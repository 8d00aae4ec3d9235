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
  readonly layers?: number;
  readonly command?: string;
  readonly computeType?: string;
  readonly passed?: number;
  readonly failed?: readonly { readonly name: string; readonly message: string }[];
  readonly gbps?: number;
  readonly driver?: string;
  readonly date?: string;
  /** Commit that was measured. */
  readonly code?: string;
  /** What a reader must know of the measurement. */
  readonly note?: string;
}

const heads = [
  'test',
  'plan',
  'tokens',
  'rows',
  'median',
  'sd',
  'n',
  'in sessions',
  'to device',
  'to host',
  '/ level 0',
];

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
  const runs = all.filter(({ tokens, test }) => test && tokens !== undefined);
  const peers = all.filter(({ peer, tokens }) => peer && tokens !== undefined);
  const first = runs[0];
  const most = Math.max(...runs.map(({ layers }) => layers ?? 0));
  const whole = runs.filter(({ layers, test }) => layers === most && test !== 'fold');
  const parts = runs.filter((run) => !whole.includes(run));
  const conformance = all.filter(({ test }) => test === 'conformance');
  return `# ONNX Runtime on CUDA

Rendered from onnx-cuda.json by packages/backend-onnx/bench/cuda-page.ts. ${first?.device}, driver ${host?.driver}, Node ${first?.node},
${host?.date}, code of commit ${host?.code}. ${first?.shape} shape, random weights. Milliseconds from recording a step on the host to the
logits on the host; "in sessions" is the part on the computing thread. Bytes are what one step copies between host and device. A plan is
a mixer and how many of the first layers take it; "level 0" is softmax attention throughout, in the same call.
${host?.note ? `\n${host.note}\n` : ''}
## Whole model, ${most} layers

${table(
  heads,
  whole.map((run) => cells(run, runs)),
)}

## Peers, on the same machine in the same call

${table(
  ['peer', 'tokens', 'median', 'sd', 'n', 'ours / peer', 'in sessions / peer'],
  peers.map((peer) => [peer.peer, peer.tokens, ...figures(peer), ...against(peer, whole)]),
)}

## Against the floor

${floors(all, whole)}

## ${[...new Set(parts.filter(({ test }) => test !== 'fold').map(({ layers }) => layers))].join(', ')} layers, and folds of one layer's cache

${table(
  heads,
  parts.map((run) => cells(run, runs)),
)}

## Conformance

${conformance
  .map(
    ({ computeType, passed, failed }) =>
      `- ${computeType}: ${passed} passed, ${failed!.length} failed${failed!.map(({ name, message }) => `\n  - ${name}: ${message}`).join('')}`,
  )
  .join('\n')}

## Commands

${[...new Set(runs.map(({ command }) => command))].map((command) => `- \`${command}\``).join('\n')}
- \`python3 cuda-peer.py\`, \`conformance.mjs --types f32,f16\`
`;
}

function cells(run: Line, runs: readonly Line[]): (string | number | undefined)[] {
  const { test, plan, tokens, batch, error, inSessions, copied } = run;
  if (error) return [test, plan, tokens, batch, error, '', '', '', '', '', ''];
  const more = [inSessions?.toFixed(2) ?? '-', copied?.toDevice ?? '-', copied?.toHost ?? '-', ratio(run, runs)];
  return [test, plan, tokens, batch, ...figures(run), ...more];
}

/** What a decode step must read at least, weights and cache, at the rate of a device copy, which counts reads and writes. */
function floors(all: readonly Line[], whole: readonly Line[]): string {
  const bandwidth = all.find(({ gbps }) => gbps)?.gbps;
  const weights = all.find(
    ({ test, plan, layers }) => test === 'compile' && plan === 'default:0' && layers === 32,
  )?.memory;
  const decodes = whole.filter(({ test, plan, error }) => test === 'decode' && plan === 'default:0' && !error);
  if (!bandwidth || !weights) return 'The floor was not measured.';
  const token = 2 * 32 * 4096 * 2; // bytes of keys and values in the Llama2-7B shape
  const rows = decodes.map((run) => {
    const bytes = weights + run.tokens! * run.batch! * token;
    const floor = bytes / bandwidth / 1e6;
    const [ours, inside] = [median(run) / floor, run.inSessions! / floor].map((x) => x.toFixed(2));
    return [run.tokens, run.batch, (bytes / 1e9).toFixed(1), floor.toFixed(2), median(run).toFixed(2), ours, inside];
  });
  return `${table(['tokens', 'rows', 'GB', 'floor', 'median', 'median / floor', 'in sessions / floor'], rows)}

The floor is weights and cache read once at the rate of a device copy, ${bandwidth.toFixed(0)} GB/s (read and write).`;
}

function figures({ milliseconds }: Line): string[] {
  const { median, sd, n } = milliseconds as Statistics;
  return [median.toFixed(2), sd.toFixed(2), String(n)];
}

function median({ milliseconds }: Line): number {
  return (milliseconds as Statistics).median;
}

/** Against the same test of the same call with softmax attention throughout. */
function ratio(run: Line, runs: readonly Line[]): string {
  const base = runs.find(
    ({ plan, error, test, tokens, batch, command }) =>
      plan === 'default:0' &&
      !error &&
      test === run.test &&
      tokens === run.tokens &&
      batch === run.batch &&
      command === run.command,
  );
  return base ? (median(run) / median(base)).toFixed(2) : '-';
}

function against(peer: Line, runs: readonly Line[]): string[] {
  const ours = runs.find(
    ({ test, plan, tokens, batch, error }) =>
      plan === 'default:0' && batch === 1 && !error && tokens === peer.tokens && peer.peer?.startsWith(`${test},`),
  );
  return ours ? [median(ours), ours.inSessions!].map((time) => (time / median(peer)).toFixed(2)) : ['-', '-'];
}

function table(head: readonly string[], rows: readonly (readonly (string | number | undefined)[])[]): string {
  return [head, head.map(() => '---'), ...rows].map((row) => `| ${row.join(' | ')} |`).join('\n');
}
