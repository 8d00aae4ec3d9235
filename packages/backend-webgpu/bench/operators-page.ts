import { readFileSync, writeFileSync } from 'node:fs';
import { bullets, type Cell, commands, type Goal, goals, table } from './markdown.js';

// docs/results/webgpu-operators.json to webgpu-operators.md beside it; the ladder also reads webgpu.json.

interface Kernel {
  readonly kernel: string;
  readonly milliseconds: number;
}
interface Operator {
  readonly operator: string;
  readonly cut?: string;
  readonly tokens: number;
  readonly past: number;
  readonly milliseconds: number;
  readonly teraflops?: number;
  readonly kernels: readonly Kernel[];
}
interface Run {
  readonly code: string;
  /** What its kernels have more than those before. */
  readonly brought?: string;
  readonly commands: readonly string[];
  readonly lines: readonly Operator[];
  /** What tune() chose, with which the lines without a cut were timed. */
  readonly choices?: readonly Choice[];
  /** Kernels with parts left out, whose results are of no use. */
  readonly parts?: readonly {
    kernel: string;
    name: string;
    milliseconds: number;
    teraflops: number;
    tokens?: number;
  }[];
  /** PyTorch in the same call. */
  readonly peers?: readonly Peer[];
}
interface Choice {
  readonly kernel: string;
  readonly chosen: string;
  readonly milliseconds: Readonly<Record<string, number>>;
}
interface Peer {
  readonly peer: string;
  readonly operator?: string;
  readonly tokens?: number;
  readonly milliseconds: number;
  readonly teraflops?: number;
  readonly gigabytesPerSecond?: number;
}
/** A line of the first record of kernels, in webgpu.json. */
interface Old {
  readonly call: string;
  readonly tape: string;
  readonly kernel: string;
  readonly microseconds: number;
}

const file = new URL('../../../docs/results/webgpu-operators.json', import.meta.url);
const read = (url: URL) => JSON.parse(readFileSync(url, 'utf8'));
const all = read(file);
const whole = read(new URL('webgpu.json', file));
const runs = all.runs as Run[];

/** Kernels of the dual layer itself: without projections, rotation, feature map and window. */
const own =
  /^(decays|recur|cumulate-decays|chunk-scores|score-tiles|chunk-states|scan-chunks|chunk-outputs|chunk-walk|dual-finish)/;
const dual = (kernels: readonly Kernel[]) =>
  kernels.reduce((sum, { kernel, milliseconds }) => sum + (own.test(kernel) ? milliseconds : 0), 0);
const find = (lines: readonly Operator[], operator: string, tokens: number) =>
  lines.find((line) => line.operator === operator && line.cut === undefined && line.tokens + line.past === tokens);

interface Version {
  readonly name: string;
  readonly lines: readonly Operator[];
  readonly product?: number | undefined;
}

/** Records of the first kernels, as operators. */
function asOperators(kernels: readonly Old[]): Operator[] {
  return ['scalar', 'vector'].flatMap((mixer): Operator[] => {
    const lines = kernels.filter(({ call, tape }) => call === `${mixer} 8192` && tape.includes(`attention ${mixer}`));
    if (lines.length === 0) return [];
    const timed = lines.map(({ kernel, microseconds }) => ({ kernel, milliseconds: microseconds / 1000 }));
    const milliseconds = timed.reduce((sum, kernel) => sum + kernel.milliseconds, 0);
    return [{ operator: `attention ${mixer}`, tokens: 8192, past: 0, milliseconds, kernels: timed }];
  });
}

function firstProduct(kernels: readonly Old[]): number | undefined {
  const line = kernels.find(
    ({ call, tape, kernel }) => call === 'prefill 4096' && tape === 'layers.0.project' && kernel === 'linear-matrix',
  );
  return line && (2 * 4096 ** 3) / line.microseconds / 1e6;
}

const chosen = (lines: readonly Operator[], cut: string) => lines.find((line) => line.cut === cut)?.teraflops;
const versions: Version[] = [
  { name: 'first kernels', lines: asOperators(whole.before.kernels), product: firstProduct(whole.before.kernels) },
  {
    name: 'padded rows of workgroup memory, decays eight loads at a time',
    lines: asOperators(whole.after.kernels),
    product: firstProduct(whole.after.kernels),
  },
  {
    name: 'tiles of 64 by 64 a subgroup, words by neighbouring lanes; states of all chunks at once, outputs in products',
    lines: all.earlier.operators,
    product: Math.max(
      ...all.earlier.ladder.map(({ teraflops, width, out }: { teraflops: number; width: number; out: number }) =>
        width === out ? teraflops : 0,
      ),
    ),
  },
  {
    name: 'features and windows in tiles, longer chunks in a fold, no idle blocks in scores (f0f514d)',
    lines: runs[0]!.lines,
    product: all.cuts.lines[0].tflops,
  },
  {
    name: 'vectors of eight halves to workgroup memory, scores of vector gates in products, a workgroup a row in the scan, decays in one pass, no detours in a fold (957d0d2)',
    lines: runs[1]!.lines,
    product: chosen(runs[1]!.lines, '128x128, 32 deep'),
  },
  ...runs.slice(2).map(({ code, brought, lines }) => ({
    name: `${brought} (${code})`,
    lines,
    product: find(lines, 'product 4096 to 4096', 8192)?.teraflops,
  })),
];
const time = (lines: readonly Operator[], operator: string, tokens: number, of: (line: Operator) => number): Cell => {
  const line = find(lines, operator, tokens);
  return line && of(line).toFixed(2);
};
const total = ({ milliseconds }: Operator) => milliseconds;
const ofDual = ({ kernels }: Operator) => dual(kernels);
const ladder = table(
  [
    'what the kernels have more than those before',
    'product, TFLOP/s',
    'attention 8k',
    'attention 32k',
    'DSLA scalar 8k',
    'vector 8k',
    'scalar 32k',
    'vector 32k',
    'foldable 32k',
    'fold 32k scalar',
    'foldable',
  ],
  versions.map(({ name, lines, product }) => [
    name,
    product?.toFixed(0),
    time(lines, 'attention default', 8192, total),
    time(lines, 'attention default', 32768, total),
    time(lines, 'attention scalar', 8192, ofDual),
    time(lines, 'attention vector', 8192, ofDual),
    time(lines, 'attention scalar', 32768, ofDual),
    time(lines, 'attention vector', 32768, ofDual),
    time(lines, 'attention foldable', 32768, total),
    time(lines, 'fold scalar', 32768, total),
    time(lines, 'fold foldable', 32768, total),
  ]),
);

/** Of the latest run that has it. */
function latest(operator: string, tokens: number, of: (line: Operator) => number): Pick<Goal, 'measured' | 'code'> {
  const run = [...runs].reverse().find(({ lines }) => find(lines, operator, tokens));
  return { measured: run && of(find(run.lines, operator, tokens)!), code: run?.code ?? '' };
}
const gated = { 8192: 0.94, 32768: 2.9 } as const; // flash-linear-attention's chunk_gla on an H200, recorded in an earlier call
const reached = goals([
  ...([8192, 32768] as const).flatMap((tokens): Goal[] => [
    {
      goal: `DSLA, two states, scalar gates, ${tokens} tokens: twice chunk_gla with one`,
      limit: 2 * gated[tokens],
      unit: 'ms',
      ...latest('attention scalar', tokens, ofDual),
    },
    {
      goal: `DSLA, two states, vector gates, ${tokens} tokens: three times chunk_gla with one`,
      limit: 3 * gated[tokens],
      unit: 'ms',
      ...latest('attention vector', tokens, ofDual),
    },
  ]),
  { goal: 'fold of one layer at 32,768 tokens, scalar', limit: 5, unit: 'ms', ...latest('fold scalar', 32768, total) },
  {
    goal: 'fold of one layer at 32,768 tokens, foldable',
    limit: 5,
    unit: 'ms',
    ...latest('fold foldable', 32768, total),
  },
]);

const operators = [...runs].reverse().map(
  ({ code, lines, peers = [] }) => `### ${code}

${table(
  ['operator', 'cut', 'tokens', 'past', 'ms', 'TFLOP/s', 'cuBLAS or SDPA, ms', 'DSLA itself, ms', 'kernels, ms'],
  lines.map(({ operator, cut, tokens, past, milliseconds, teraflops, kernels }) => {
    const named = operator === 'attention default' ? 'attention' : operator;
    const peer = peers.find((one) => one.operator === named && one.tokens === tokens);
    return [
      operator,
      cut,
      tokens,
      past,
      milliseconds.toFixed(2),
      teraflops?.toFixed(0),
      peer?.milliseconds.toFixed(2),
      /scalar|vector|foldable/.test(operator) ? dual(kernels).toFixed(2) : undefined,
      kernels.map(({ kernel, milliseconds }) => `${kernel} ${milliseconds.toFixed(3)}`).join(', '),
    ];
  }),
)}`,
);
const cuts = table(
  ['cut', 'ms', 'TFLOP/s', 'RMS ratio to the first'],
  (all.cuts.lines as { name: string; ms: number; tflops: number; rms?: string }[]).map((c) => [
    c.name,
    c.ms,
    c.tflops,
    c.rms,
  ]),
);
const chosenBy = runs.findLast(({ choices }) => choices);
const choices = chosenBy?.choices?.flatMap(({ kernel, chosen, milliseconds }) =>
  Object.entries(milliseconds).map(([name, time]) => [kernel, name, time.toFixed(3), name === chosen ? 'chosen' : '']),
);
const waits = [...runs].reverse().flatMap(({ code, parts }) =>
  parts === undefined
    ? []
    : [
        `## What the kernels wait for, at ${code}

${(parts[0]!.tokens ?? 4096).toLocaleString('en')} tokens; with loads, barriers or more left out, results are of no use.

${table(
  ['kernel', 'of it', 'ms', 'TFLOP/s'],
  parts.map(({ kernel, name, milliseconds, teraflops }) => [
    kernel,
    name,
    milliseconds.toFixed(3),
    teraflops.toFixed(0),
  ]),
)}

`,
      ],
);
const latestPeers = runs.findLast(({ peers }) => peers);
const others = latestPeers!.peers!.map(({ peer, operator, tokens, milliseconds, teraflops, gigabytesPerSecond }) =>
  gigabytesPerSecond === undefined
    ? `${peer}, ${operator}, ${tokens} tokens: ${milliseconds.toFixed(2)} ms${teraflops === undefined ? '' : `, ${teraflops.toFixed(0)} TFLOP/s`}`
    : `device copy: ${gigabytesPerSecond.toFixed(0)} GB/s (read + write)`,
);

writeFileSync(
  new URL('webgpu-operators.md', file),
  `# WebGPU: operators of a prefill

Rendered from webgpu-operators.json by packages/backend-webgpu/bench/operators-page.ts. ${all.hardware}, driver ${all.driver}, ${all.software}, ${all.date}. Llama2-7B shape (32 heads of 128), float16; times by the device's own clock, the shortest of three passes.

## Against the goals

${reached}

${bullets(all.notes)}

## Versions of the kernels

Milliseconds, where nothing else is said; DSLA: the kernels of the dual layer without projections, rotation, feature map and window; foldable: with them.

${ladder}

## Operators

${operators.join('\n\n')}

${
  choices
    ? `## What the device chose at ${chosenBy!.code}

tune() at 4,096 tokens, milliseconds by the host's clock; the lines of that run without a cut have these cuts.

${table(['kernel', 'cut', 'ms', ''], choices)}

`
    : ''
}${waits.join('')}## Cuts of a product at ${all.cuts.code}

${all.cuts.note}.

${cuts}

## PyTorch in the same call as ${latestPeers!.code}

${bullets(others)}

## Commands

${commands([...new Set(runs.flatMap((run) => run.commands)), ...all.earlier.commands])}
`,
);
