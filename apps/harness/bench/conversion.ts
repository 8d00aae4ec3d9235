// What the embedded conversion is worth at every level, beside what it must beat; with the record of the chain that made it.
//   node --conditions=@dsla/source --import tsx bench/conversion.ts --chain result.json [--choice FILE.jsonl,...]
//     [--windows 6] [--recall-windows 3] [--questions 60] [--out ../../docs/results/conversion.json]
// `result.json` is written by packages/distill/bench/chain-gpu.ts. Without --chain only the page is rendered anew from --out.
import { readFileSync, writeFileSync } from 'node:fs';
import { basename } from 'node:path';
import { parseArgs } from 'node:util';
import { multipleChoice, readQuestions } from '@dsla/eval';
import type { MixerOptions } from '@dsla/models';
import { Scope } from '@dsla/spec';
import { type Checkpoint, embedded, inspect, mixers, openTuned, untuned } from '../src/checkpoint.js';
import type { Entry } from '../src/compare/line-up.js';
import { loadAll } from '../src/compare/load.js';
import { measureQuality } from '../src/compare/quality.js';
import { readText } from '../src/measure/text.js';
import { machine } from '../src/report/machine.js';
import { openProgress } from '../src/ui/progress.js';
import { type Choice, type Measured, page } from './conversion-page.js';

const { values: options } = parseArgs({
  options: {
    chain: { type: 'string' },
    choice: { type: 'string', default: '' },
    windows: { type: 'string', default: '6' },
    'recall-windows': { type: 'string', default: '3' },
    questions: { type: 'string', default: '60' },
    out: { type: 'string', default: new URL('../../../docs/results/conversion.json', import.meta.url).pathname },
  },
});

const number = (name: 'windows' | 'recall-windows' | 'questions'): number => Number(options[name]);
const { signal } = new AbortController();
const contexts = [512, 1024, 2048, 4096];
const levels = [1, 2, 3, 4, 5, 6, 7, 8];
const some = [4, 7, 8];
const backend = 'onnx';

/** Groups of contenders that are loaded together, each with the softmax model that they are compared with. */
async function groups(): Promise<Entry[][]> {
  const base = await inspect(embedded('llama-4m'));
  const { checkpoint, tuned } = await openTuned(base, embedded('llama-4m-dsla'), signal);
  const entry = (id: string, family: Entry['family'], conversion: Entry['conversion'], of = checkpoint): Entry => {
    return { id, family, checkpoint: of, conversion };
  };
  const at = (id: string, family: Entry['family'], options: MixerOptions, wanted: readonly number[]) =>
    wanted.map((level) => entry(`${id}-${level}`, family, { mixer: id, options, level }));
  const softmax = entry('softmax', 'softmax', untuned('foldable', 0));
  const zamba: Checkpoint = await inspect(embedded('zamba-4m'));
  const window = (size: number) => at(`window${size}`, 'window', { kind: 'window', size, sinks: 4 }, some);
  return [
    [softmax, ...levels.map((level) => entry(`tuned-${level}`, 'foldable', { ...tuned, level }))],
    [softmax, ...at('untuned', 'untuned', mixers.foldable, [2, 4, 6, 7, 8])],
    [softmax, ...[64, 256, 512].flatMap(window)],
    [
      softmax,
      ...at('single', 'single', mixers.single, [7, 8]),
      ...at('published', 'published', mixers.published, [7, 8]),
      entry('zamba', 'zamba', untuned('foldable', 0), zamba),
    ],
  ];
}

async function measure(entries: readonly Entry[]): Promise<Pick<Measured, 'quality' | 'choice'>> {
  await using scope = new Scope();
  const progress = openProgress({ err: process.stderr, env: { CI: '1' } }, false);
  const gaps: string[] = [];
  const running = await loadAll(entries, { backend, open: { signal }, context: 4096, progress, signal }, scope, gaps);
  const text = await readText(undefined);
  const rounds = { least: number('windows'), most: number('windows'), until: Number.POSITIVE_INFINITY };
  const recall = { windows: number('recall-windows'), until: Number.POSITIVE_INFINITY };
  const {
    bitsPerByte,
    excess,
    recall: recalled,
  } = await measureQuality(running, text, { contexts, windows: rounds, recall }, progress, signal);
  const choice: Choice[] = [];
  for (const file of options.choice.split(',').filter(Boolean)) {
    const questions = (await readQuestions(file)).slice(0, number('questions'));
    for (const { contender, model } of running) {
      const { sum } = await multipleChoice(model, questions, { signal });
      choice.push({ contender: contender.id, task: basename(file, '.jsonl'), ...sum });
    }
  }
  progress.end();
  const contenders = running.map(({ contender: { id, family, level, tuned } }) => ({ id, family, level, tuned }));
  return { quality: { contenders, bitsPerByte, excess, recall: recalled }, choice };
}

if (options.chain !== undefined) {
  const { settings: _, ...chain } = JSON.parse(readFileSync(options.chain, 'utf8'));
  const text = await readText(undefined);
  const measured: Measured = {
    chain,
    measured: {
      machine: machine([backend]),
      backend,
      text: text.facts,
      windows: number('windows'),
      recallWindows: number('recall-windows'),
    },
    quality: { contenders: [], bitsPerByte: [], excess: [], recall: [] },
    choice: [],
  };
  for (const entries of await groups()) {
    const own = await measure(entries);
    const known = new Set(measured.quality.contenders.map(({ id }) => id)); // softmax is in every group
    const isNew = ({ contender }: { readonly contender: string }) => !known.has(contender);
    measured.quality.contenders.push(...own.quality.contenders.filter(({ id }) => !known.has(id)));
    for (const rows of ['bitsPerByte', 'excess', 'recall'] as const) {
      measured.quality[rows].push(...(own.quality[rows].filter(isNew) as never[]));
    }
    measured.choice.push(...own.choice.filter(isNew));
    writeFileSync(options.out, `${JSON.stringify(measured)}\n`);
  }
}
const written = JSON.parse(readFileSync(options.out, 'utf8')) as Measured;
writeFileSync(options.out.replace(/\.json$/, '.md'), page(written));
