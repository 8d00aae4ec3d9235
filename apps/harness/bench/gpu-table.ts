import { readFileSync, writeFileSync } from 'node:fs';

// One table of both GPU backends, docs/results/gpu.md, from what their own benches left in docs/results:
// node --conditions=@dsla/source --import tsx apps/harness/bench/gpu-table.ts

/** A figure of one of the backends' pages. */
interface Figure {
  readonly backend: string;
  readonly device: string;
  readonly shape: string;
  readonly weights: string;
  /** Mixer of the converted layers and their number. */
  readonly level: string;
  readonly phase: string;
  readonly context: number;
  readonly batch: number;
  readonly ms: number;
  readonly sd: number;
  readonly n: number;
  /** Bytes of products and states at the device's copy rate. */
  readonly floor_ms: number | null;
  /** PyTorch in the same call. */
  readonly peer_ms: number | null;
  /** Commit; absent where the page has one for all. */
  readonly code?: string;
}

interface Statistics {
  readonly n: number;
  readonly sd: number;
  readonly median: number;
}

/** A line of backend-webgpu's decode bench. */
interface Decoded {
  readonly shape: string;
  readonly mixer: string;
  readonly level: string;
  readonly weights: string;
  readonly tokens: number;
  readonly batch: number;
  readonly bytes?: { readonly weights: number; readonly states: number };
  readonly milliseconds: Statistics;
  readonly drawn?: Statistics;
}

interface Peer {
  readonly peer: string;
  readonly tokens: number;
  readonly batch: number;
  readonly milliseconds: Statistics;
  readonly gigabytesPerSecond: number;
}

const results = new URL('../../../docs/results/', import.meta.url);
const read = (name: string) => JSON.parse(readFileSync(new URL(name, results), 'utf8'));

/** From one token on the host to the next where tokens were drawn on the device, else to the logits. */
function decodeFigures(): Figure[] {
  const { hardware, ladder, peers } = read('webgpu-decode.json') as {
    readonly hardware: string;
    readonly ladder: readonly { readonly runs: readonly Decoded[] }[];
    readonly peers: readonly Peer[];
  };
  const rate = peers.find(({ peer }) => peer === 'copy')!.gigabytesPerSecond * 1e6; // bytes a millisecond
  return ladder.flatMap(({ runs }, step) =>
    runs.flatMap((run): Figure[] => {
      if (!run.bytes) return []; // of an earlier call, which later ones have measured again
      const { median: ms, sd, n } = run.drawn ?? run.milliseconds;
      const same = ({ peer, tokens, batch }: Peer) =>
        peer === 'decode' && step === ladder.length - 1 && tokens === run.tokens && batch === run.batch;
      const peer = run.mixer === 'default' && run.weights === 'f16' && run.shape === 'llama2-7b' && peers.find(same);
      const figure = {
        backend: 'webgpu',
        device: hardware.replace('one ', ''),
        shape: run.shape,
        weights: run.weights,
        level: run.mixer === 'default' ? 'default:0' : `${run.mixer}:${run.level}`,
        phase: 'decode',
        context: run.tokens,
        batch: run.batch,
        ms,
        sd,
        n,
        floor_ms: (run.bytes.weights + run.bytes.states) / rate,
        peer_ms: peer ? peer.milliseconds.median : null,
      };
      return [figure];
    }),
  );
}

/** The last of every kind: later ones stand behind earlier ones. */
function latest(figures: readonly Figure[]): Figure[] {
  const found = new Map<string, Figure>();
  for (const figure of figures) {
    const { backend, shape, weights, level, phase, context, batch } = figure;
    found.set([backend, shape, weights, level, phase, context, batch].join(' '), figure);
  }
  return [...found.values()];
}

const figures = latest([...read('webgpu.json').summary, ...decodeFigures(), ...read('onnx-cuda.json').summary]);
const backends = ['webgpu', 'onnx'];
const kinds = new Map<string, Figure[]>();
for (const figure of figures) {
  const { shape, weights, level, phase, context, batch } = figure;
  const [mixer, layers] = level.split(':');
  const attention = layers === '0' ? 'softmax' : `${mixer}, ${layers} layers`;
  const key = [phase, shape, weights, attention, context.toLocaleString('en'), batch].join(' | ');
  kinds.set(key, [...(kinds.get(key) ?? []), figure]);
}

const rank = ({ phase, shape, weights, level, batch, context }: Figure): string =>
  [phase === 'prefill' ? 0 : 1, shape, weights === 'f16' ? 0 : weights, level, batch, context]
    .map((part) => String(part).padStart(12, '0'))
    .join();
const sorted = [...kinds].sort(([, [a]], [, [b]]) => (rank(a!) < rank(b!) ? -1 : 1));

function cell(figure: Figure | undefined): string {
  if (!figure) return '– | – | –';
  const { ms, sd, n, floor_ms, peer_ms } = figure;
  const times = (other: number | null): string => (other === null ? '–' : `${(ms / other).toFixed(2)}`);
  return `${ms.toFixed(2)} ± ${sd.toFixed(2)} (${n}) | ${times(floor_ms)} | ${times(peer_ms)}`;
}

const rows = sorted.map(
  ([key, found]) =>
    `| ${key} | ${backends.map((name) => cell(found.find(({ backend }) => backend === name))).join(' | ')} |`,
);
const devices = [...new Set(figures.map(({ device }) => device))].join(', ');
const head = [
  '',
  'shape',
  'weights',
  'attention',
  'context',
  'batch',
  ...backends.flatMap((name) => [`${name}, ms`, '/ floor', '/ PyTorch']),
];
const text = `# Both GPU backends in one table

Rendered by apps/harness/bench/gpu-table.ts from [webgpu.json](webgpu.md), [webgpu-decode.json](webgpu-decode.md) and
[onnx-cuda.json](onnx-cuda.md), where versions, commands and what each figure stands on are said. ${devices}. The latest measurement
of each kind: milliseconds, median ± standard deviation (n). A decode step is a token of every row. / floor: against reading the
weights of products and the states once at the rate of a device-to-device copy. / PyTorch: against PyTorch in the same call or in
one on the same host, scaled-dot-product attention for prefill, compiled layers for decode; – where nothing was measured.

| ${head.join(' | ')} |
| ${head.map((_, index) => (index > 3 ? '--:' : '---')).join(' | ')} |
${rows.join('\n')}
`;
writeFileSync(new URL('gpu.md', results), text);
