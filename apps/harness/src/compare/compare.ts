import { performance } from 'node:perf_hooks';
import { type OpenOptions, Scope, throwIfAborted } from '@dsla/spec';
import type { Checkpoint } from '../checkpoint.js';
import { measureSpeed, type SpeedProtocol } from '../measure/speed.js';
import type { Text } from '../measure/text.js';
import { commit, machine } from '../report/machine.js';
import type { Report } from '../report/report.js';
import type { Progress } from '../ui/progress.js';
import { crossings } from './crossings.js';
import type { Entry } from './line-up.js';
import { cacheOf, loadAll, modelsOf, type Running } from './load.js';
import { measureQuality, type Quality, type QualityProtocol } from './quality.js';
import { recallPairs } from './recall.js';

export interface CompareOptions {
  readonly entries: readonly Entry[];
  /** By name. The first one measures quality, all measure speed. */
  readonly backends: ReadonlyMap<string, OpenOptions>;
  readonly text: Text;
  readonly quality: QualityProtocol;
  readonly speed: SpeedProtocol;
  readonly command: readonly string[];
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

/** The main job: every contender on the same text, on every backend. @throws DslaError, E_ABORTED included */
export async function compare(options: CompareOptions): Promise<Report> {
  const started = performance.now();
  const { text, progress, signal } = options;
  const names = [...options.backends.keys()];
  const gaps: string[] = [];
  const backends: Report['backends'] = [];
  const speed: Report['speed'] = [];
  let facts: Pick<Report, 'models' | 'contenders' | 'cache'> | undefined;
  let quality: Quality | undefined;
  for (const [backend, open] of options.backends) {
    throwIfAborted(signal, 'compare');
    await using scope = new Scope();
    const context = Math.max(options.speed.lengths.at(-1)! + options.speed.decodeTokens, ...options.quality.contexts);
    const running = await loadAll(options.entries, { backend, open, context, progress, signal }, scope, gaps);
    backends.push({ name: backend, description: running[0]!.model.device.description, threads: open.threads ?? null });
    facts ??= factsOf(running, options.speed.lengths);
    quality ??= await measureQuality(running, text, options.quality, progress, signal);
    speed.push(...(await timeAll(running, backend, options)));
  }
  progress.end();
  const measured = { ...facts!, speed };
  return {
    format: 'dsla-report',
    version: 1,
    createdAt: new Date().toISOString(),
    seconds: (performance.now() - started) / 1000,
    command: [...options.command],
    commit: await commit(),
    machine: machine(names),
    backends,
    text: text.facts,
    protocol: [...qualityProtocol(options.quality, quality!), ...speedProtocol(options.speed, speed)],
    gaps: [...gaps, ...quality!.gaps],
    bitsPerByte: quality!.bitsPerByte,
    excess: quality!.excess,
    recall: quality!.recall,
    ...measured,
    crossings: crossings({ ...measured, backends: names }),
  };
}

function factsOf(
  running: readonly Running[],
  lengths: readonly number[],
): Pick<Report, 'models' | 'contenders' | 'cache'> {
  return {
    models: modelsOf(running),
    contenders: running.map(({ contender }) => contender),
    cache: running.flatMap((each) => cacheOf(each, lengths)),
  };
}

async function timeAll(
  running: readonly Running[],
  backend: string,
  options: CompareOptions,
): Promise<Report['speed']> {
  const { speed, text, progress, signal } = options;
  const count = speed.lengths.at(-1)! + speed.decodeTokens;
  const ids = new Map<Checkpoint, Int32Array>();
  for (const { entry, model } of running) {
    if (!ids.has(entry.checkpoint)) ids.set(entry.checkpoint, idsFor(model, text.content, count));
  }
  const timed = running.map(({ entry, contender, model }) => ({
    contender: contender.id,
    backend,
    model,
    ids: ids.get(entry.checkpoint)!,
  }));
  progress.stage('speed', timed.length * speed.rounds.most);
  return measureSpeed(timed, speed, (contender) => progress.step(contender), signal);
}

/** The text's first ids, over again where four characters a token were not enough. */
function idsFor({ tokenizer }: Running['model'], text: string, count: number): Int32Array {
  const ids = tokenizer.encode(text.slice(0, 4 * count));
  return Int32Array.from({ length: count }, (_, index) => ids[index % ids.length]!);
}

function qualityProtocol(
  { contexts, windows: { most }, recall }: QualityProtocol,
  { windows, recall: rows }: Quality,
): string[] {
  const bits = `Bits per byte: ${windows} windows of ${contexts.at(-1)} tokens, each from another of ${most} parts of the text, beginning with a paragraph (behind the begin token, where the tokenizer has one); all their tokens count. Shorter contexts are the beginnings of the same windows. n = ${windows}; 95 % intervals by Student's t over windows.`;
  if (rows.length === 0) return [bits];
  const ranges = [...new Set(rows.map(({ from, to }) => `${from} to ${to}`))];
  const each = `${recall.windows} ${recall.windows === 1 ? 'window' : 'windows'} of up to ${recallPairs} pairs`;
  return [
    bits,
    `Recall: pairs of two random tokens each, planted in the text and asked for later; right means that both are the most likely ones. ${each} for each range of distances (${ranges.join(', ')}), in windows just long enough; 95 % intervals by Wilson's score.`,
  ];
}

function speedProtocol({ lengths, decodeTokens }: SpeedProtocol, speed: Report['speed']): string[] {
  const rounds = speed.find(({ test }) => test === 'prefill')!.samples.length;
  return [
    `Speed: the contenders were timed in turn, ${rounds} ${rounds === 1 ? 'time' : 'times'}, after a warm-up of ${lengths[0]} prompt tokens and ${decodeTokens} decoded ones each. One sequence (batch 1), in steps of up to 512 tokens.`,
    `Prefill: time to the first token of a prompt of each length, n = ${rounds}. Decode: single-token steps at each length, n = ${rounds * decodeTokens}.`,
    'Cache: bytes of one sequence at each length, from the descriptions of its states. Weights: as the backend computes with them.',
  ];
}
