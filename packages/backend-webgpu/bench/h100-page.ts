import { readFileSync, writeFileSync } from 'node:fs';
import { copyRate, fixed, floor, type Line, nameOf, type Peer } from './decode-lines.js';
import { bullets, commands, type Goal, goals, table } from './markdown.js';
import type { Statistics } from './synthetic.js';

// docs/results/webgpu-h100.json to webgpu-h100.md beside it: what webgpu-decode.md and webgpu.md have of an H200, on an H100.

interface Call {
  readonly code: string;
  readonly decode: readonly Line[];
  readonly peers: readonly Peer[];
}
interface Prefill {
  readonly level: number;
  readonly tokens: number;
  readonly milliseconds: Statistics;
}
interface Results {
  readonly hardware: string;
  readonly driver: string;
  readonly software: string;
  readonly date: string;
  readonly calls: readonly Call[];
  readonly prefill: {
    readonly code: string;
    readonly lines: readonly Prefill[];
    readonly peers: readonly { readonly peer: string; readonly tokens: number; readonly milliseconds: number }[];
  };
  readonly notes: readonly string[];
  readonly commands: readonly string[];
}

const file = new URL('../../../docs/results/webgpu-h100.json', import.meta.url);
const all = JSON.parse(readFileSync(file, 'utf8')) as Results;
const token = ({ drawn, milliseconds }: Line): number => (drawn ?? milliseconds).median;

function decodeRows({ code, decode, peers }: Call) {
  const rate = copyRate(peers);
  return decode.map((line) => {
    const least = floor(line, rate);
    const alike = ({ peer, tokens, batch }: Peer) =>
      peer === 'decode' && nameOf(line) === 'llama2-7b f16' && tokens === line.tokens && batch === line.batch;
    const peer = peers.find(alike)?.milliseconds.median;
    return [
      code,
      nameOf(line),
      line.tokens,
      line.batch,
      fixed(line.milliseconds),
      fixed(line.host),
      fixed(line.drawn),
      line.drawn?.sd.toFixed(2),
      line.drawn?.n,
      fixed(line.gpu?.milliseconds),
      least.toFixed(2),
      (token(line) / least).toFixed(2),
      line.gpu && (line.gpu.milliseconds.median / least).toFixed(2),
      peer?.toFixed(2),
      peer && (token(line) / peer).toFixed(2),
    ];
  });
}

/** The times of the floor of a line of every call that has it, token to token. */
function timesFloor(goal: string, limit: number, name: string, tokens: number, batch = 1): Goal[] {
  return all.calls.flatMap(({ code, decode, peers }) =>
    decode
      .filter((line) => nameOf(line) === name && line.tokens === tokens && line.batch === batch)
      .map((line) => ({ goal, limit, measured: token(line) / floor(line, copyRate(peers)), unit: '', code })),
  );
}

const prefillAt = (tokens: number, level: number) =>
  all.prefill.lines.find((line) => line.tokens === tokens && line.level === level)?.milliseconds.median;
const contexts = [512, 4096, 16384];
const each = (goal: string, limit: number, name: string) =>
  contexts.flatMap((tokens) => timesFloor(`${goal}, context ${tokens.toLocaleString('en-US')}`, limit, name, tokens));
const reached = goals([
  ...each('decoding in float16, times the floor', 1.3, 'llama2-7b f16'),
  ...each('decoding in 8 bits, times the floor', 1.6, 'llama2-7b q8'),
  ...each('decoding in 4 bits, times the floor', 1.6, 'llama2-7b q4'),
  ...timesFloor('decoding, batch 32, context 4,096, times the floor', 1.5, 'llama2-7b f16', 4096, 32),
  ...each('decoding of Zamba-7B, times the floor', 1.5, 'zamba-7b f16'),
  // What llama.cpp's Vulkan backend took on an H200.
  ...[[4096, 312] as const, [8192, 648] as const].map(([tokens, limit]) => ({
    goal: `prefill of ${tokens.toLocaleString('en-US')} tokens: faster than llama.cpp`,
    limit,
    measured: prefillAt(tokens, 0),
    unit: 'ms',
    code: all.prefill.code,
  })),
]);

const prefill = all.prefill.lines.map(({ level, tokens, milliseconds: { median, sd, n } }) => {
  const peer = all.prefill.peers.find((one) => one.peer === 'PyTorch' && one.tokens === tokens)?.milliseconds;
  return [
    tokens,
    level === 0 ? 'softmax' : level,
    median.toFixed(1),
    sd.toFixed(2),
    n,
    level === 0 ? undefined : (median / prefillAt(tokens, 0)!).toFixed(2),
    peer?.toFixed(1),
    peer && (median / peer).toFixed(2),
  ];
});

writeFileSync(
  new URL('webgpu-h100.md', file),
  `# WebGPU backend on an H100

Rendered from webgpu-h100.json by packages/backend-webgpu/bench/h100-page.ts. ${all.hardware}, driver ${all.driver}, ${all.software}, ${all.date}. Random weights. Floor: the bytes of products and states read once at the rate at which PyTorch copies, ${all.calls.map(({ peers }) => copyRate(peers).toFixed(0)).join(' and ')} GB/s. Correctness on the same machine: [webgpu.md](webgpu.md).

## Against the goals

From one token on the host to the next, of every call.

${reached}

## Decoding

- logits: from recording on the host to the logits on the host, one step at a time; host: of these until the last command is with the driver
- token: from one token on the host to the next, when tokens are drawn on the device (the most likely one) and the next step is recorded before the last is back
- device: of the step's dispatches alone, by the device's clock
- PyTorch: compiled, the step as one CUDA graph, in the same call

${table(
  [
    'code',
    'model',
    'context',
    'batch',
    'logits, ms',
    'host, ms',
    'token, ms',
    'sd',
    'n',
    'device, ms',
    'floor, ms',
    'token / floor',
    'device / floor',
    'PyTorch, ms',
    'token / PyTorch',
  ],
  all.calls.flatMap(decodeRows),
)}

${bullets(all.notes)}

## Prefill at ${all.prefill.code}

PyTorch: the same shape and SDPA, by the device's own clock, in the same call.

${table(['tokens', 'of the first layers', 'median ms', 'sd', 'n', '/ level 0', 'PyTorch, ms', '/ PyTorch'], prefill)}

## Commands

${commands(all.commands)}
`,
);
