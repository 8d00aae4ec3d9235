import { mkdir } from 'node:fs/promises';
import { type Plan, planAt } from '@dsla/models';
import { checkLevel, type LayerOrder } from '@dsla/policy';
import { DslaError, type HostTensor, throwIfAborted, type Weight } from '@dsla/spec';
import { type ConversionNote, writeConversion } from './conversion.js';
import { type Evaluation, evaluate, type LevelResult } from './evaluate.js';
import { fit, type StepInfo } from './fit.js';
import { hasProgress, type Identity, loadProgress, type Progress, saveProgress } from './progress.js';
import type { Recipe } from './recipe.js';
import { fingerprint, type TextSource } from './source.js';
import type { Student } from './student.js';
import { logitsTrial, matchTrial, type Trial } from './trial.js';
import { openWindows } from './windows.js';

export interface ChainOptions {
  readonly order: LayerOrder;
  /** How many layers of the order to convert. */
  readonly level: number;
  readonly recipe: Recipe;
  readonly data: TextSource;
  /** Text of the held-out windows; it must share nothing with `data`. */
  readonly heldOut: TextSource;
  /** Folder of the conversion and of the checkpoint; made where it is missing. */
  readonly out: string;
  /** Goes on with the checkpoint in `out`, if there is one. */
  readonly resume?: boolean;
  readonly signal?: AbortSignal;
  readonly onProgress?: (event: ChainEvent) => void;
}

export type ChainEvent =
  | ({ readonly kind: 'step'; readonly task: string; readonly secondsLeft: number } & StepInfo)
  | { readonly kind: 'task'; readonly task: string; readonly before: number; readonly after: number }
  | { readonly kind: 'level'; readonly result: LevelResult };

interface Task {
  readonly stage: 'match' | 'logits';
  readonly layers: readonly number[];
  /** Of the hybrid that a `logits` stage runs. */
  readonly plan: Plan;
  /** Levels that are judged once it is done. */
  readonly levels: readonly number[];
}

/**
 * Tunes a model layer by layer along an order (arXiv 2506.09316, section 4.4); after every level the conversion is judged and
 * saved. A run that was killed goes on with `resume` and gives the same losses.
 * @throws DslaError E_INPUT, E_ABORTED, E_IO, E_FORMAT or E_CONFIG for a checkpoint that is damaged or of another run
 */
export async function chain(student: Student, options: ChainOptions): Promise<readonly LevelResult[]> {
  const { order, level, recipe, out, signal } = options;
  const { description, tokenizer, tuned, mixer } = student;
  checkLevel(level, order.order.length);
  const planOf = (at: number) => planAt(order.order, at, mixer.name, description.convertible);
  const tasks = tasksOf(order.order, level, recipe, planOf, mixer.name);
  const heldOutText = await openWindows(options.heldOut, tokenizer, { tokens: recipe.tokens, seed: 0 });
  const heldOut = await heldOutText.take(recipe.heldOut);
  const identity = await identityOf(student, options);
  const progress = await start(options, identity);
  const { position } = progress;
  const windows = await openWindows(options.data, tokenizer, { tokens: recipe.tokens, seed: recipe.seed, position });
  replace(tuned, progress.tuned);
  const save = async (): Promise<void> =>
    saveProgress(out, identity, { ...progress, tuned, position: windows.position });
  const clock = openClock(tasks, recipe);

  while (progress.task < tasks.length) {
    throwIfAborted(signal, 'distill');
    const task = tasks[progress.task]!;
    const name = `layer ${task.layers.join(', ')}, ${task.stage}`;
    const next = order.order.indexOf(task.layers[0]!) + 1;
    if (recipe.together === 'chained' && !progress.fit && !progress.untuned) {
      progress.untuned = (await evaluate(student, planOf(next), heldOut, recipe.tokens, signal)).kl;
    }
    await using trial = await openTrial(student, task, recipe, heldOut, signal);
    const stage = recipe[task.stage];
    const done = await fit(trial, {
      where: name,
      windows,
      heldOut,
      recipe,
      stage,
      state: progress.fit,
      signal,
      onStep: (info) => {
        const secondsLeft = clock(progress.task, info.step);
        options.onProgress?.({ kind: 'step', task: name, secondsLeft, ...info });
      },
      save: async (state) => {
        progress.fit = state;
        await save();
      },
    });
    for (const [weight, value] of Object.entries(done.values)) tuned.set(weight, value);
    const misfit = { task: name, before: done.before, after: done.best.misfit, steps: done.step };
    progress.misfits.push(misfit);
    options.onProgress?.({ kind: 'task', ...misfit });
    for (const at of task.levels) {
      const judged = await evaluate(student, planOf(at), heldOut, recipe.tokens, signal);
      await finishLevel(student, options, progress, at, judged);
    }
    progress.task += 1;
    progress.fit = undefined;
    await save();
  }
  return progress.levels;
}

/** Notes what a level is worth and writes the conversion up to it. */
async function finishLevel(
  student: Student,
  options: ChainOptions,
  progress: Progress,
  level: number,
  judged: Evaluation,
): Promise<void> {
  const { untuned, misfits, levels } = progress;
  const layer = options.order.order[level - 1]!;
  const result = { level, layer, ...judged, untuned, misfits: misfits.splice(0) };
  levels.push(result);
  progress.untuned = undefined;
  await writeConversion(options.out, noteOf(student, options, level, levels), student.tuned);
  options.onProgress?.({ kind: 'level', result });
}

function tasksOf(
  order: readonly number[],
  level: number,
  { match, logits, together }: Recipe,
  planOf: (level: number) => Plan,
  mixer: string,
): Task[] {
  const layers = order.slice(0, level);
  const levels = layers.map((_, index) => index + 1);
  const alone = (layer: number): Plan => planOf(0).map((own, at) => (at === layer ? mixer : own));
  const tasks = layers.flatMap((layer, index): Task[] => {
    const plan = together === 'independent' ? alone(layer) : planOf(index + 1);
    const task = { layers: [layer], plan, levels: [] };
    return [
      ...(match.steps > 0 ? [{ ...task, stage: 'match' as const }] : []),
      ...(logits.steps > 0 && together !== 'joint' ? [{ ...task, stage: 'logits' as const }] : []),
    ];
  });
  if (together === 'joint' && logits.steps > 0) tasks.push({ stage: 'logits', layers, plan: planOf(level), levels });
  if (tasks.length === 0) {
    const rule = 'there must be a layer to tune, and steps to tune it';
    throw new DslaError('E_INPUT', { where: 'distill', rule, got: `level ${level}` });
  }
  if (together === 'joint') return tasks.with(-1, { ...tasks.at(-1)!, levels });
  return tasks.map((task, index) => {
    const last = tasks[index + 1]?.layers[0] !== task.layers[0];
    return last ? { ...task, levels: [order.indexOf(task.layers[0]!) + 1] } : task;
  });
}

function openTrial(
  student: Student,
  { stage, layers, plan }: Task,
  recipe: Recipe,
  heldOut: Int32Array,
  signal: AbortSignal | undefined,
): Promise<Trial> {
  if (stage === 'match') return matchTrial(student, layers[0]!, recipe, heldOut, signal);
  return logitsTrial(student, layers, plan, recipe, signal);
}

async function start({ out, resume, data }: ChainOptions, identity: Identity): Promise<Progress> {
  try {
    await mkdir(out, { recursive: true });
  } catch (cause) {
    const rule = `the folder could not be made (${(cause as Error).message})`;
    throw new DslaError('E_IO', { where: out, rule, cure: 'Choose another.', cause });
  }
  if (hasProgress(out)) {
    if (resume) return loadProgress(out, identity);
    throw new DslaError('E_INPUT', {
      where: out,
      rule: 'the folder holds the checkpoint of an earlier run',
      cure: `Go on with it (resume), or choose another folder for ${data.name}.`,
    });
  }
  const fresh = { task: 0, position: { block: 0, skip: 0 }, untuned: undefined, misfits: [], levels: [] };
  return { ...fresh, tuned: new Map(), fit: undefined };
}

/** What decides the numbers of a run. A chain may be resumed to a higher level; layers tuned together may not. */
async function identityOf(student: Student, options: ChainOptions): Promise<Identity> {
  const { order, level, recipe, data, heldOut } = options;
  return {
    base: student.base.sha256,
    mixer: student.mixer,
    order: order.order,
    recipe,
    data: await fingerprint(data),
    heldOut: await fingerprint(heldOut),
    ...(recipe.together === 'joint' && { level }),
  };
}

function noteOf(
  { base, mixer, device }: Student,
  { order, recipe, data, heldOut }: ChainOptions,
  level: number,
  levels: readonly LevelResult[],
): ConversionNote {
  return {
    format: 'dsla-conversion',
    version: 1,
    base,
    mixer,
    order,
    level,
    evidence: { levels, recipe, data: data.name, heldOut: heldOut.name, device: device.description },
  };
}

/** Seconds left after a step of a task: mean time of the steps of each stage seen so far, all steps assumed to be taken. */
function openClock(tasks: readonly Task[], recipe: Recipe): (task: number, step: number) => number {
  const seen = { match: { ms: 0, steps: 0 }, logits: { ms: 0, steps: 0 } };
  let last = performance.now();
  return (task, step) => {
    const now = performance.now();
    const own = seen[tasks[task]!.stage];
    own.ms += now - last;
    own.steps += 1;
    last = now;
    const cost = ({ stage }: Task) => (seen[stage].steps > 0 ? seen[stage].ms / seen[stage].steps : own.ms / own.steps);
    const left = tasks.slice(task + 1).reduce((ms, each) => ms + cost(each) * recipe[each.stage].steps, 0);
    return (left + cost(tasks[task]!) * (recipe[tasks[task]!.stage].steps - step)) / 1000;
  };
}

function replace(target: Map<Weight, HostTensor>, by: ReadonlyMap<Weight, HostTensor>): void {
  target.clear();
  for (const [name, value] of by) target.set(name, value);
}
