import type { Recipe } from '@dsla/distill';
import { type Ablations, baselinePart, besidePart, bitsTable, changeOf, recallPart } from './conversion-parts.js';
import type { Measured } from './conversion-record.js';
import { grouped, percent, table } from './tables.js';

/** The page of a measurement: nothing in it but what the JSON says. */
export function page(all: Measured, ablations: Ablations): string {
  const more = [...besidePart(all), ...baselinePart(all), ...recallPart(ablations)];
  return `${[...about(all), ...chainPart(all), ...goals(all), ...quality(all), ...more, ...choices(all)].join('\n')}\n`;
}

function about({ measured: { machine, backend, text, windows, recallWindows } }: Measured): string[] {
  return [
    '# The conversion of every layer of llama-4m',
    '',
    "Rendered from conversion.json by apps/harness/bench/conversion.ts; no number is typed by hand. The conversion is `apps/harness/checkpoints/llama-4m-dsla`: two states, window of 64 + 4 sinks, foldable; q, k, v, o are the base model's.",
    '',
    `Judged on ${machine.cpu}, ${machine.cores} cores, Node ${machine.node}, backend ${backend}, on ${text.name} (sha256 ${text.sha256.slice(0, 12)}), which neither the model nor the conversion was trained on: ${windows} windows of 4,096 tokens, shorter contexts are their beginnings; recall of 12 planted pairs in each of ${recallWindows} windows a range of distances. ± and ranges: 95 % intervals over windows (Student's t; recall: Wilson).`,
    '',
  ];
}

function chainPart({ chain }: Measured): string[] {
  const { recipe, host, levels } = chain;
  const steps = ({ steps, rows, rate }: Recipe['logits']) =>
    `${steps} steps of ${rows} x ${recipe.tokens} tokens at ${rate}`;
  const rates = Object.entries(recipe.rates ?? {}).map(([name, factor]) => `${name} x ${factor}`);
  return [
    '## The chain that made it',
    '',
    `One run, seed ${recipe.seed}: ${chain.device}, ${host.gpu ?? 'no GPU'}, ${host.cpu} (${host.cores} cores). ${chain.seconds.toFixed(0)} s in all, judging included; ${grouped(chain.tokens)} tokens, ${grouped(Math.round(chain.tokens / levels.length))} a layer, ${grouped(Math.round(chain.tokensPerSecond))} a second; GPU memory in use ${grouped(chain.gpuMiB)} MiB, resident memory of the process ${grouped(Math.round(chain.residentBytes / 2 ** 20))} MiB.`,
    '',
    `Match: ${steps(recipe.match)}; logits: ${steps(recipe.logits)}; AdamW, rates of ${rates.join(', ') || 'all weights alike'}. Judged on ${recipe.heldOut} windows of validation books; KL from the teacher in nats a token; misfit: squared error of what attention adds to the residual, over its square.`,
    '',
    ...table(
      [
        'level',
        'layer',
        'misfit untuned',
        'tuned',
        'KL, this layer untuned',
        'in the logits stage',
        'tuned',
        'cross-entropy against the teacher',
      ],
      levels.map(({ level, layer, kl, untuned, excess, crossEntropy, misfits }) => [
        `${level}`,
        `${layer}`,
        misfits[0]?.before.toFixed(4) ?? '',
        misfits[0]?.after.toFixed(4) ?? '',
        untuned?.value.toFixed(5) ?? '',
        misfits[1] ? `${misfits[1].before.toFixed(5)} → ${misfits[1].after.toFixed(5)}` : '',
        kl.value.toFixed(5),
        percent(excess.value / (crossEntropy.value - excess.value)),
      ]),
    ),
  ];
}

interface Goal {
  readonly level: number;
  readonly bits: number;
  /** Share of the teacher's recall. */
  readonly recall?: number;
}

const goalsAt4k: readonly Goal[] = [
  { level: 4, bits: 0.005, recall: 0.99 },
  { level: 7, bits: 0.015, recall: 0.99 },
  { level: 8, bits: 0.05 },
];

function goals(all: Measured): string[] {
  const teacher = recallOf(all, 'softmax');
  const rows = goalsAt4k.map(({ level, bits, recall }) => {
    const [change, kept] = [changeOf(all.quality, `tuned-${level}`, 4096), recallOf(all, `tuned-${level}`) / teacher];
    const met = change <= bits && (recall === undefined || kept >= recall);
    return [
      `${level} / 8`,
      percent(change),
      percent(bits),
      percent(changeOf(all.quality, `untuned-${level}`, 4096)),
      `${(100 * kept).toFixed(1)} %`,
      recall === undefined ? 'as far as a state can' : `${100 * recall} %`,
      met ? (recall === undefined ? 'bits met; recall: see below' : 'met') : 'missed',
    ];
  });
  return [
    '## Goals at 4,096 tokens, against the teacher',
    '',
    ...table(['level', 'bits a byte', 'goal', 'untuned', "of the teacher's recall", 'goal', ''], rows),
  ];
}

function quality(all: Measured): string[] {
  const { contenders, recall } = all.quality;
  const ranges = [...new Set(recall.map(({ from, to }) => `${from} to ${to}`))];
  const recalls = contenders.map(({ id }) => [
    id,
    ...ranges.map((range) => {
      const row = recall.find(({ contender, from, to }) => contender === id && `${from} to ${to}` === range);
      if (!row) return '';
      const { value, low, high } = row.estimate;
      return `${value.toFixed(3)}${low !== null && high !== null ? ` (${low.toFixed(2)}–${high.toFixed(2)})` : ''}`;
    }),
  ]);
  return [
    '## Bits per byte by context, and above softmax on the same windows',
    '',
    'Name and converted layers. untuned: start values; windowN: the last N tokens and 4 sinks; single: one state, untuned; published: as in the paper, untuned.',
    '',
    ...bitsTable(all.quality),
    '## Recall by distance in tokens',
    '',
    ...table(['', ...ranges], recalls),
  ];
}

function choices({ choice, quality: { contenders } }: Measured): string[] {
  if (choice.length === 0) return [];
  const tasks = [...new Set(choice.map(({ task }) => task))];
  const rows = contenders.map(({ id }) => [
    id,
    ...tasks.map((task) => {
      const found = choice.find((row) => row.contender === id && row.task === task);
      return found ? `${found.value.toFixed(3)} (${found.interval.map((x) => x.toFixed(2)).join('–')})` : '';
    }),
  ]);
  const counts = tasks.map((task) => `${task}: ${choice.find((row) => row.task === task)!.n}`);
  return [
    '## Multiple choice, accuracy by log-likelihood',
    '',
    `Questions: ${counts.join(', ')}. Most questions of BLiMP fit a window of 64 tokens, in which a converted layer is exact.`,
    '',
    ...table(['', ...tasks], rows),
  ];
}

/** Over all distances. */
function recallOf({ quality }: Measured, id: string): number {
  const rows = quality.recall.filter(({ contender }) => contender === id).map(({ estimate }) => estimate);
  return rows.reduce((sum, { value, n }) => sum + value * n, 0) / rows.reduce((sum, { n }) => sum + n, 0);
}
