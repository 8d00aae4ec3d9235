import { breakEven } from '../src/measure/break-even.js';
import { summarise } from '../src/measure/statistics.js';
import type { Contender, Report } from '../src/report/report.js';

// A report with invented numbers of a plausible shape, for tests of what is made out of a report.

const lengths = [512, 1024, 2048, 4096];

function contender(id: string, family: Contender['family'], level: number): Contender {
  const model = family === 'zamba' ? 'zamba' : 'llama';
  return { id, label: id, model, family, level, layers: 8, tuned: false, weightBytes: 9_000_000 + 1000 * level };
}

const contenders: Contender[] = [
  contender('softmax', 'softmax', 0),
  contender('zamba', 'zamba', 0),
  ...[2, 4, 6, 8].flatMap((level) => [
    contender(`foldable-${level}`, 'foldable', level),
    contender(`window-${level}`, 'window', level),
  ]),
  contender('single-6', 'single', 6),
  contender('published-6', 'published', 6),
];

const estimate = (value: number, half: number) => ({ value, low: value - half, high: value + half, n: 8 });

const loss = ({ family, level }: Contender, length: number) =>
  1.9 - 0.05 * Math.log2(length / 512) + (family === 'published' ? 1.5 : family === 'zamba' ? 0.03 : 0.01 * level);

const decodeMs = ({ family, level }: Contender, length: number) =>
  family === 'zamba' ? 3.1 : 2 + (8 - level) * 0.0002 * length + 0.1 * level;

function speed(test: 'prefill' | 'decode'): Report['speed'] {
  return contenders.flatMap((of) =>
    lengths.map((length) => {
      const tokens = test === 'prefill' ? length : 1;
      const centre = test === 'prefill' ? length * 0.2 + 1e-5 * length ** 2 : decodeMs(of, length);
      const samples = [centre * 0.98, centre, centre * 1.03];
      const { mean, sd, median } = summarise(samples.map((ms) => (1000 * tokens) / ms));
      return { contender: of.id, backend: 'onnx', test, length, tokens, samples, mean, sd, median };
    }),
  );
}

const cacheBytes = ({ family, level }: Contender, length: number) =>
  family === 'zamba' ? 400_000 + 1024 * length : (8 - level) * 2048 * length + level * 150_000;

const curve = (of: Contender, cost: typeof cacheBytes) => lengths.map((length) => ({ length, cost: cost(of, length) }));

export const sampleReport: Report = {
  format: 'dsla-report',
  version: 1,
  createdAt: '2026-01-02T03:04:05.000Z',
  seconds: 98.7,
  command: ['dsla', 'compare', '--out', 'a <b> & "c"'],
  commit: '0123456789ab',
  machine: {
    cpu: 'A CPU',
    cores: 2,
    memoryBytes: 2 ** 34,
    system: 'linux 6.1 x64',
    node: 'v20.20.2',
    packages: { 'onnxruntime-node': '1.29.0' },
  },
  backends: [{ name: 'onnx', description: 'ONNX Runtime 1.29.0, CPU', threads: 2 }],
  text: { name: 'Moby-Dick', bytes: 1_200_000, sha256: 'ab'.repeat(32) },
  protocol: ['8 windows of 4,096 tokens.', 'Untuned: before any tuning.'],
  gaps: ['Recall: the checkpoint has no recall.json.'],
  models: ['llama', 'zamba'].map((id) => ({
    id,
    name: `${id}-4m`,
    architecture: id,
    parameters: 4_300_000,
    vocabulary: 4096,
    context: 4096,
    convertible: 8,
    order: id === 'llama' ? [0, 1, 2, 3, 4, 6, 7, 5] : [],
    orderOrigin: 'order.json',
  })),
  contenders,
  bitsPerByte: contenders.flatMap((of) =>
    lengths.map((length) => ({ contender: of.id, length, estimate: estimate(loss(of, length), 0.04) })),
  ),
  excess: contenders.slice(1).flatMap((of) =>
    lengths.map((length) => ({
      contender: of.id,
      length,
      estimate: estimate(loss(of, length) - loss(contenders[0]!, length), 0.004),
    })),
  ),
  recall: contenders.flatMap((of) =>
    lengths.map((length) => ({
      contender: of.id,
      length,
      from: length / 2,
      to: length - 8,
      estimate: { value: 0.5, low: 0.4, high: 0.6, n: 40 },
    })),
  ),
  speed: [...speed('prefill'), ...speed('decode')],
  cache: contenders.flatMap((of) =>
    lengths.map((length) => ({ contender: of.id, length, bytes: cacheBytes(of, length) })),
  ),
  crossings: contenders
    .filter(({ level }) => level > 0)
    .flatMap((of) =>
      (['decode', 'cache'] as const).map((quantity) => {
        const cost = quantity === 'decode' ? decodeMs : cacheBytes;
        return {
          contender: of.id,
          against: 'softmax',
          backend: 'onnx',
          quantity,
          from: breakEven(curve(contenders[0]!, cost), curve(of, cost)),
          shortest: 512,
          longest: 4096,
        };
      }),
    ),
};
