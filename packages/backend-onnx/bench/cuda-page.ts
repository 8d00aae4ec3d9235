// docs/results/onnx-cuda.json, from the lines that cuda.ts, conformance.ts and the peer printed on a GPU host, to onnx-cuda.md:
//   node --import tsx packages/backend-onnx/bench/cuda-page.ts [--keep] [--drop COMMIT] LINES.jsonl...
// Each file starts with a line about its host; --keep adds the files to what is there, but for what is dropped; without files the JSON is
// rendered as it is.
import { readFileSync, writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import type { Statistics } from '../../backend-webgpu/bench/synthetic.js';
import { breakEvens, drawings, drawn } from './cuda-levels.js';
import { figures, type Line, labelOf, median, table } from './cuda-lines.js';

/** A figure in the shape that all GPU backends share. */
interface Summary {
  readonly backend: string;
  readonly device: string;
  readonly shape: string;
  readonly weights: string;
  /** Mixer and number of converted layers. */
  readonly level: string;
  readonly phase: 'prefill' | 'decode';
  readonly context: number;
  readonly batch: number;
  readonly ms: number;
  readonly sd: number;
  readonly n: number;
  readonly floor_ms: number | null;
  readonly peer_ms: number | null;
  readonly code: string | undefined;
}

const ahead = 'decode, ahead';

const heads = [
  'code',
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
const { values: options, positionals: given } = parseArgs({
  allowPositionals: true,
  options: {
    keep: { type: 'boolean', default: false },
    /** What was measured again: `COMMIT`, `COMMIT TEST`, `COMMIT TEST LAYERS` or `COMMIT peer PEER`. */
    drop: { type: 'string', multiple: true, default: [] },
  },
});
const old = JSON.parse(readFileSync(file, 'utf8')) as { readonly lines: readonly Line[] };
const kept = given.length === 0 || options.keep ? old.lines : [];
const dropped = ({ code, test, peer, layers }: Line): boolean => {
  const name = `${code} ${test ?? `peer ${peer}`} ${layers} `;
  return options.drop.some((drop) => name.startsWith(`${drop} `));
};
const lines = [...kept.filter((line) => !dropped(line)), ...given.flatMap(linesOf)];
const ways = drawn(lines);
const summary = lines.filter((line) => !ways.includes(line)).flatMap((line) => summarised(line, lines));
const list = (items: readonly object[]): string => items.map((item) => `\n    ${JSON.stringify(item)}`).join(',');
writeFileSync(file, `{\n  "summary": [${list(summary)}\n  ],\n  "lines": [${list(lines)}\n  ]\n}\n`);
writeFileSync(new URL('onnx-cuda.md', file), render(lines));

function linesOf(path: string): Line[] {
  const all = readFileSync(path, 'utf8').split('\n').filter(Boolean);
  const own = all.map((line) => JSON.parse(line) as Line);
  const code = own.find(({ test }) => test === 'host')?.code;
  return own.map((line) => ({ ...line, code }));
}

function summarised(run: Line, all: readonly Line[]): Summary[] {
  const { plan, tokens, batch, milliseconds, error, device, shape, layers, code } = run;
  const test = phaseOf(run);
  if (!test || error || layers !== 32 || run.operators === 'off') return [];
  // Token to token, where that was timed too.
  if (run.test === 'decode' && all.some((line) => line.test === ahead && alike(line, run))) return [];
  const { median: ms, sd, n } = milliseconds as Statistics;
  const peers = all.filter((line) => isPeerOf(line, run, test)).map(median);
  return [
    {
      backend: 'onnx',
      device: /CUDA on ([^,]+)/.exec(device!)?.[1] ?? device!,
      shape: shape!,
      weights: run.weights ?? 'f16',
      level: plan!,
      phase: test,
      context: tokens!,
      batch: batch!,
      ms,
      sd,
      n,
      floor_ms: test === 'decode' && plan === 'default:0' ? (floorOf(run, all) ?? null) : null,
      peer_ms: peers.length > 0 ? Math.min(...peers) : null,
      code,
    },
  ];
}

/** First and last count of every thing. */
function left(all: readonly Line[]): (string | number | undefined)[][] {
  const counts = all.filter(({ test }) => test === 'left');
  return counts.flatMap((last, index) => {
    const { code, thing, at, live } = last;
    if (counts[index + 1]?.thing === thing && counts[index + 1]?.code === code) return [];
    const first = counts.find((line) => line.thing === thing && line.code === code)!;
    const each = (live! - first.live!) / (at! - first.at!);
    return [[code, thing, at, ...[first.live!, live!, each].map((bytes) => (bytes / 1024).toFixed(1))]];
  });
}

/** One of the same commit that does what the run does, in whatever way it has. */
function isPeerOf(peer: Line, { code, tokens, batch }: Line, test: string): boolean {
  const rows = peer.batch ?? 1;
  return peer.code === code && peer.tokens === tokens && rows === batch && peer.peer?.split(',')[0] === test;
}

function phaseOf({ test }: Line): 'prefill' | 'decode' | undefined {
  return test === ahead ? 'decode' : test === 'prefill' || test === 'decode' ? test : undefined;
}

/** The same rows of the same model and code. */
function alike(a: Line, b: Line): boolean {
  const keys = ['code', 'plan', 'tokens', 'batch', 'layers', 'weights', 'operators', 'shape'] as const;
  return keys.every((key) => a[key] === b[key]);
}

function render(all: readonly Line[]): string {
  const hosts = all.filter(({ test }) => test === 'host');
  const timed = all.filter(({ tokens, test }) => test && tokens !== undefined);
  const runs = timed.filter((run) => !ways.includes(run));
  const peers = all.filter(({ peer, tokens }) => peer && tokens !== undefined);
  const first = runs.find(({ operators }) => operators !== 'off');
  const most = Math.max(...runs.map(({ layers }) => layers ?? 0));
  const whole = runs.filter(({ layers, test }) => layers === most && test !== 'fold');
  const parts = runs.filter((run) => !whole.includes(run));
  const blocks = all.filter(({ test }) => test === 'blocks');
  return `# ONNX Runtime on CUDA

Rendered from onnx-cuda.json by packages/backend-onnx/bench/cuda-page.ts. ${first?.device}, Node ${first?.node}. ${first?.shape} shape,
random weights. Milliseconds from recording a step on the host to the logits on the host; "in sessions" is the part on the computing
thread. Bytes are what one step copies between host and device. "decode, ahead" is the time from token to token where a step draws its
token and the next one is handed over before that is known, as text is generated. A plan is a mixer and how many of the first layers take it, then the type of the matrices, if
not float16; "operators off" means without operators of our own, by ONNX Runtime's alone; "level 0" is softmax attention throughout, in
the same call.

${hosts.map(({ code, date, driver, note }) => `- Code of commit ${code}, ${date}, driver ${driver}. ${note ?? ''}`).join('\n')}

## Whole model, ${most} layers

${table(
  heads,
  whole.map((run) => cells(run, runs)),
)}

## Peers, on the same machine in calls of the same commit

PyTorch: "SDPA" and "eager" are transformers' model, "one graph" is a step with a static cache, layers compiled by Inductor, recorded whole as a
CUDA graph (packages/backend-webgpu/bench/peers.py).

${table(
  ['code', 'peer', 'tokens', 'rows', 'median', 'sd', 'n', 'ours / peer', 'ahead / peer', 'in sessions / peer'],
  peers.map((peer) => [
    peer.code,
    peer.peer === 'decode' ? 'decode, one graph' : peer.peer,
    peer.tokens,
    peer.batch ?? 1,
    ...figures(peer),
    ...against(peer, whole),
  ]),
)}

## Against the floor

${floors(all, whole)}

## ${[...new Set(parts.filter(({ test }) => test !== 'fold').map(({ layers }) => layers!))].sort((a, b) => a - b).join(', ')} layers, and folds of one layer's cache

${table(
  heads,
  parts.map((run) => cells(run, runs)),
)}

## Where levels break even

Times of a plan over those of softmax attention in the same call, and the length from which on the plan is faster, on the line between
the two lengths beside it.

${breakEvens(runs.filter(({ test }) => test !== 'fold'))}

## Drawing tokens

The same step where every row's token is drawn in another way.

${drawings(ways)}

## Outside the sessions

${table(
  ['code', 'test', 'plan', 'tokens', 'rows', 'record', 'submit', 'download'],
  [...whole, ...parts].flatMap(({ outside, ...run }) =>
    outside
      ? [
          [
            run.code,
            run.test,
            labelOf(run),
            run.tokens,
            run.batch,
            ...['record', 'submit', 'download'].map((part) => outside[part]?.toFixed(2)),
          ],
        ]
      : [],
  ),
)}

## Conformance

${conformance(all).join('\n')}
${blocks.map(({ code, weights, ratio: off }) => `- ${code}, a small model with matrices in ${weights}, against the CPU: RMS ratio of the logits ${off?.toExponential(2)}`).join('\n')}

## Long runs

${table(
  ['code', 'model', 'done', 'number', 'free on the device, MB', 'process on the host, MB'],
  all.flatMap(({ code, shape, layers, test, at, deviceFree, rss }) => {
    const model = `${shape}, layers: ${layers}`;
    return at === undefined || test === 'left'
      ? []
      : [[code, model, test, at, megabytes(deviceFree!), megabytes(rss!)]];
  }),
)}

## Host memory that is not given back

What is made and ended again and again, and live bytes of the C library's heap. A session is one product, made and ended through ONNX
Runtime's C API, with nothing of ours; a device computes a prompt of a small model. Devices therefore leave their sessions, their stream
and their thread to the next one.

${table(['code', 'made and ended', 'times', 'live after the first ten, KB', 'at the end, KB', 'KB each'], left(all))}

## Faults

${table(
  ['code', 'fault', 'error', 'process lives', 'a new device works', 'free before, MB', 'free after, MB'],
  all.flatMap(({ code, fault, error, lives, same, afterwards, freeBefore, freeAfter }) => {
    if (fault === undefined) return [];
    const works = same ?? afterwards?.error === 'none';
    const free = [freeBefore, freeAfter].map((bytes) => (bytes === undefined ? '-' : megabytes(bytes)));
    return [[code, fault, error, lives ? 'yes' : 'no', works ? 'yes' : 'no', ...free]];
  }),
)}

${all.flatMap(({ fault, message }) => (fault && message ? [`- ${fault}: ${message}`] : [])).join('\n')}

## Commands

${[...new Set(timed.map(({ command }) => command))].map((command) => `- \`${command}\``).join('\n')}
- \`python3 cuda-peer.py\`, \`python3 peers.py --rounds 20 --runs 512x32,4096x32,512x1,4096x1\`, \`conformance.mjs --types f32,f16\`
`;
}

/** By commit and type; a run of the suite may have been cut into parts. */
function conformance(all: readonly Line[]): string[] {
  const parts = all.filter(({ test }) => test === 'conformance');
  const titles = new Set(parts.map(({ code, computeType }) => `${code}, ${computeType}`));
  return Array.from(titles, (title) => {
    const own = parts.filter(({ code, computeType }) => title === `${code}, ${computeType}`);
    const passed = own.reduce((sum, part) => sum + part.passed!, 0);
    const failed = own.flatMap((part) => part.failed!);
    const list = failed.map(({ name, message }) => `\n  - ${name}: ${message}`);
    return `- ${title}: ${passed} passed, ${failed.length} failed${list.join('')}`;
  });
}

function cells(run: Line, runs: readonly Line[]): (string | number | undefined)[] {
  const { code, test, tokens, batch, error, inSessions, copied } = run;
  const plan = labelOf(run);
  if (error) return [code, test, plan, tokens, batch, error, '', '', '', '', '', ''];
  const more = [inSessions?.toFixed(2) ?? '-', copied?.toDevice ?? '-', copied?.toHost ?? '-', ratio(run, runs)];
  return [code, test, plan, tokens, batch, ...figures(run), ...more];
}

/** What a decode step must read at least, weights and cache, at the rate of a device copy, which counts reads and writes. */
function floors(all: readonly Line[], whole: readonly Line[]): string {
  const decodes = whole.filter((run) => phaseOf(run) === 'decode' && run.plan === 'default:0' && !run.error);
  const rows = decodes.flatMap((run) => {
    const floor = floorOf(run, all);
    if (floor === undefined) return [];
    const [ours, inside] = [median(run), run.inSessions].map((x) => (x === undefined ? '-' : (x / floor).toFixed(2)));
    return [
      [run.code, run.test, labelOf(run), run.tokens, run.batch, floor.toFixed(2), median(run).toFixed(2), ours, inside],
    ];
  });
  return `${table(['code', 'test', 'plan', 'tokens', 'rows', 'floor', 'median', 'median / floor', 'in sessions / floor'], rows)}

The floor is weights (without the table of embeddings) and cache read once at the rate of a device copy, timed in calls of the same commit where there is one
(${bandwidthsOf(all)} GB/s, read and write).`;
}

/** In milliseconds, of a decode step with softmax attention throughout. */
function floorOf({ tokens, batch, code, weights: type }: Line, all: readonly Line[]): number | undefined {
  const commit = code?.split(' ')[0]; // settings may follow
  const bandwidth = bandwidthOf(all.filter((line) => line.code === commit)) ?? bandwidthOf(all);
  const weights = all.find(
    ({ test, plan, layers, weights: own }) =>
      test === 'compile' && plan === 'default:0' && layers === 32 && (own ?? 'f16') === (type ?? 'f16'),
  )?.memory;
  const token = 2 * 32 * 4096 * 2; // bytes of keys and values in the Llama2-7B shape
  const table = 32000 * 4096 * 2; // of embeddings, of which a token takes one row
  return bandwidth && weights ? (weights - table + tokens! * batch! * token) / bandwidth / 1e6 : undefined;
}

function bandwidthOf(all: readonly Line[]): number | undefined {
  return rates(all)[0];
}

function bandwidthsOf(all: readonly Line[]): string {
  return rates(all)
    .map((rate) => rate.toFixed(0))
    .join(', ');
}

function rates(all: readonly Line[]): number[] {
  return all.flatMap(({ peer, gbps, gigabytesPerSecond: rate = gbps }) =>
    peer?.endsWith('copy') && rate ? [rate] : [],
  );
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(0);
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

/** Times of the same commit over the peer's. */
function against(peer: Line, runs: readonly Line[]): string[] {
  const own = runs.filter((run) => run.plan === 'default:0' && !run.error && run.operators !== 'off');
  const of = (test: string): Line | undefined =>
    own.find((run) => run.test === test && isPeerOf(peer, run, phaseOf(run)!));
  const test = peer.peer!.split(',')[0]!;
  const [ours, next] = [of(test), of(`${test}, ahead`)];
  const times = [ours && median(ours), next && median(next), ours?.inSessions];
  return times.map((time) => (time === undefined ? '-' : (time / median(peer)).toFixed(2)));
}
