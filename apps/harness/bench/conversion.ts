// What the embedded conversion is worth at every level, beside what it must beat; with the record of the chain that made it.
//   node --conditions=@dsla/source --import tsx bench/conversion.ts --chain result.json [--choice FILE.jsonl,...]
//     [--windows 6] [--recall-windows 3] [--questions 60] [--out ../../docs/results/conversion.json]
//     [--baselines DIR] [--beside]
// `result.json` is written by packages/distill/bench/chain-gpu.ts. --baselines: its output folders, one a baseline that was
// tuned with the same small budget. --beside: states beside a window against the window alone, up to twice the training length.
// Each option measures its part and leaves the rest of --out as it is; without one the page is rendered anew.
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { multipleChoice, readQuestions } from '@dsla/eval';
import type { MixerOptions } from '@dsla/models';
import { Scope, stateBytes } from '@dsla/spec';
import { type Checkpoint, embedded, inspect, mixers, openTuned, untuned } from '../src/checkpoint.js';
import type { Entry } from '../src/compare/line-up.js';
import { loadAll, type Running } from '../src/compare/load.js';
import { measureQuality } from '../src/compare/quality.js';
import { readText } from '../src/measure/text.js';
import { machine } from '../src/report/machine.js';
import { openProgress } from '../src/ui/progress.js';
import { page } from './conversion-page.js';
import type { BaselineChain, Choice, Judgement, Measured } from './conversion-record.js';

const { values: options } = parseArgs({
  options: {
    chain: { type: 'string' },
    choice: { type: 'string', default: '' },
    windows: { type: 'string', default: '6' },
    'recall-windows': { type: 'string', default: '3' },
    questions: { type: 'string', default: '60' },
    baselines: { type: 'string' },
    beside: { type: 'boolean', default: false },
    out: { type: 'string', default: new URL('../../../docs/results/conversion.json', import.meta.url).pathname },
  },
});

const number = (name: 'windows' | 'recall-windows' | 'questions'): number => Number(options[name]);
const { signal } = new AbortController();
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

/** A conversion that is judged but not kept, with the record of the chain that made it. */
async function baseline(folder: string): Promise<{ readonly entries: Entry[]; readonly chain: BaselineChain }> {
  const { checkpoint, tuned } = await openTuned(await inspect(embedded('llama-4m')), folder, signal);
  const name = basename(folder);
  const { settings: _, losses: __, ...chain } = JSON.parse(readFileSync(join(folder, 'result.json'), 'utf8'));
  const family = tuned.options.kind === 'published' ? 'published' : name.endsWith('single') ? 'single' : 'foldable';
  const levels = [4, 5, 7, 8].filter((level) => level <= tuned.level && (level !== 5 || tuned.level === 5));
  const own = levels.map((level): Entry => {
    return { id: `${name}-${level}`, family, checkpoint, conversion: { ...tuned, level } };
  });
  const softmax: Entry = { id: 'softmax', family: 'softmax', checkpoint, conversion: untuned('foldable', 0) };
  const sha256 = createHash('sha256')
    .update(readFileSync(join(folder, 'model.safetensors')))
    .digest('hex');
  return { entries: [softmax, ...own], chain: { name, mixer: tuned.options, level: tuned.level, sha256, ...chain } };
}

/** Tokens of a window that is as large as a window of 64 with two states and their own caches. */
const sameBytes = 195;

/** A window alone, with untuned and with tuned states; the tuned ones are those of a window of 64, not tuned again. */
async function besideWindow(): Promise<Entry[][]> {
  const base = await inspect(embedded('llama-4m'));
  const { checkpoint, tuned } = await openTuned(base, embedded('llama-4m-dsla'), signal);
  const entry = (id: string, family: Entry['family'], conversion: Entry['conversion']): Entry => {
    return { id, family, checkpoint, conversion };
  };
  const softmax = entry('softmax', 'softmax', untuned('foldable', 0));
  const at = (id: string, family: Entry['family'], conversion: Omit<Entry['conversion'], 'level'>) =>
    some.map((level) => entry(`${id}-${level}`, family, { ...conversion, level }));
  const alone = (size: number) => {
    return at(`window${size}`, 'window', { mixer: `window${size}`, options: { kind: 'window', size, sinks: 4 } });
  };
  const beside = [64, 256].flatMap((window) => {
    const dual = { kind: 'dual', window } as const;
    return [
      [softmax, ...alone(window), ...at(`untuned${window}`, 'untuned', { mixer: 'untuned', options: dual })],
      [softmax, ...at(`tuned${window}`, 'foldable', { ...tuned, options: dual })],
    ];
  });
  return [...beside, [softmax, ...alone(sameBytes)]];
}

interface Protocol {
  readonly contexts: readonly number[];
  readonly windows: number;
  readonly recallWindows: number;
  readonly choice: readonly string[];
}

const whole: Protocol = {
  contexts: [512, 1024, 2048, 4096],
  windows: number('windows'),
  recallWindows: number('recall-windows'),
  choice: options.choice.split(',').filter(Boolean),
};

async function measure(entries: readonly Entry[], protocol: Protocol): Promise<Judgement> {
  await using scope = new Scope();
  const progress = openProgress({ err: process.stderr, env: { CI: '1' } }, false);
  const gaps: string[] = [];
  const { contexts } = protocol;
  const loading = { backend, open: {}, context: contexts.at(-1)!, progress, signal };
  const running = await loadAll(entries, loading, scope, gaps);
  const text = await readText(undefined);
  const windows = { least: protocol.windows, most: protocol.windows, until: Number.POSITIVE_INFINITY };
  const recall = { windows: protocol.recallWindows, until: Number.POSITIVE_INFINITY };
  const asked = { contexts, windows, recall };
  const { bitsPerByte, excess, recall: recalled } = await measureQuality(running, text, asked, progress, signal);
  const choice: Choice[] = [];
  for (const file of protocol.choice) {
    const questions = (await readQuestions(file)).slice(0, number('questions'));
    for (const { contender, model } of running) {
      const { sum } = await multipleChoice(model, questions, { signal });
      choice.push({ contender: contender.id, task: basename(file, '.jsonl'), ...sum });
    }
  }
  progress.end();
  const contenders = running.map(({ entry, contender: { id, family, level, tuned }, model }) => {
    return { id, family, level, tuned, bytes: bytesOf(entry, model) };
  });
  return { quality: { contenders, bitsPerByte, excess, recall: recalled }, choice };
}

/** Bytes of one sequence's state in the layer that is converted first, at 4,096 tokens. */
function bytesOf({ checkpoint: { order } }: Entry, { states, device }: Running['model']): number {
  const own = Object.values(states).filter(({ spec }) => spec.name.startsWith(`layers.${order[0]}.`));
  return own.reduce((sum, { spec }) => sum + stateBytes(spec, 4096, device.capabilities.computeType), 0);
}

/** The groups one after the other; softmax is in every one, and counts once. */
async function judge(groups: readonly Entry[][], protocol: Protocol): Promise<Judgement> {
  const all: Judgement = { quality: { contenders: [], bitsPerByte: [], excess: [], recall: [] }, choice: [] };
  for (const entries of groups) {
    const own = await measure(entries, protocol);
    const known = new Set(all.quality.contenders.map(({ id }) => id));
    const isNew = ({ contender }: { readonly contender: string }) => !known.has(contender);
    all.quality.contenders.push(...own.quality.contenders.filter(({ id }) => !known.has(id)));
    for (const rows of ['bitsPerByte', 'excess', 'recall'] as const) {
      all.quality[rows].push(...(own.quality[rows].filter(isNew) as never[]));
    }
    all.choice.push(...own.choice.filter(isNew));
  }
  return all;
}

const read = (path: string): Measured => JSON.parse(readFileSync(path, 'utf8'));
const write = (measured: Measured): void => writeFileSync(options.out, `${JSON.stringify(measured)}\n`);

if (options.chain !== undefined) {
  const { settings: _, ...chain } = JSON.parse(readFileSync(options.chain, 'utf8'));
  const text = await readText(undefined);
  const { windows, recallWindows } = whole;
  const measured = { machine: machine([backend]), backend, text: text.facts, windows, recallWindows };
  const before: Partial<Measured> = existsSync(options.out) ? read(options.out) : {};
  write({ ...before, chain, measured, ...(await judge(await groups(), whole)) });
}
if (options.baselines !== undefined) {
  const folders = readdirSync(options.baselines)
    .sort()
    .map((name) => join(options.baselines!, name));
  const tuned = await Promise.all(folders.map(baseline));
  const entries = tuned.map(({ entries }) => entries);
  const judged = await judge(entries, { ...whole, choice: [] });
  write({ ...read(options.out), baselines: { chains: tuned.map(({ chain }) => chain), ...judged.quality } });
}
if (options.beside) {
  const protocol = { contexts: [1024, 4096, 8192], windows: 4, recallWindows: 1, choice: [] };
  const { quality } = await judge(await besideWindow(), protocol);
  write({ ...read(options.out), beside: { windows: protocol.windows, ...quality } });
}
const ablations = JSON.parse(readFileSync(new URL('../../../docs/results/ablations.json', import.meta.url), 'utf8'));
writeFileSync(options.out.replace(/\.json$/, '.md'), page(read(options.out), ablations));
