import { DslaError, type HostTensor, type Named, throwIfAborted } from '@dsla/spec';
import { type AdamWState, adamW, adamWState, added, globalNorm, rateAt, scaled } from './optimizer.js';
import type { Recipe, Stage } from './recipe.js';
import type { Trial } from './trial.js';
import type { Windows } from './windows.js';

/** Where a fit stands; with it, the values and the position in the data, it goes on exactly. */
export interface FitState {
  /** Steps done. */
  step: number;
  /** Of the untuned start. */
  readonly before: number;
  /** Best held-out misfit so far, and its values. */
  best: { misfit: number; values: Named<HostTensor> };
  /** Looks since then. */
  waited: number;
  values: Named<HostTensor>;
  readonly adam: AdamWState;
}

export interface StepInfo {
  readonly step: number;
  readonly steps: number;
  readonly loss: number;
  /** Of the gradients, before clipping. */
  readonly norm: number;
  readonly rate: number;
}

export interface FitOptions {
  /** Named in errors: `layer 3, match`. */
  readonly where: string;
  readonly windows: Windows;
  /** [windows * tokens] */
  readonly heldOut: Int32Array;
  readonly recipe: Recipe;
  readonly stage: Stage;
  /** To go on from. */
  readonly state?: FitState | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly onStep?: ((info: StepInfo) => void) | undefined;
  readonly save?: ((state: FitState) => Promise<void>) | undefined;
}

/**
 * Tunes a trial and leaves it with the best values seen on the held-out windows, which may be those it began with.
 * @throws DslaError E_INPUT when a loss or gradient is no number, naming layer and step; E_ABORTED
 */
export async function fit(trial: Trial, options: FitOptions): Promise<FitState> {
  const { where, heldOut, recipe, stage, signal, onStep, save } = options;
  const { layer } = trial;
  const state = options.state ?? (await begin(trial, heldOut));
  const warmUp = Math.round(stage.warmUp * stage.steps);
  layer.assign(state.values);
  while (state.step < stage.steps && state.waited < recipe.patience) {
    if (signal?.aborted) await save?.(state);
    throwIfAborted(signal, where);
    const { loss, gradients } = await accumulate(trial, options);
    const norm = globalNorm(gradients);
    if (!Number.isFinite(loss) || !Number.isFinite(norm)) diverged(`${where}, step ${state.step + 1}`, loss, gradients);
    const rate = rateAt(state.step, { peak: stage.rate, warmUp, steps: stage.steps, floor: stage.floor });
    const clipped = scaled(gradients, Math.min(1, stage.clip / (norm + 1e-6)));
    state.values = adamW(state.values, clipped, state.adam, (name) => rate * factorOf(name, recipe.rates), stage.adam);
    layer.assign(state.values);
    state.step += 1;
    onStep?.({ step: state.step, steps: stage.steps, loss, norm, rate });
    if (state.step % recipe.checkEvery === 0 || state.step === stage.steps) await look(trial, heldOut, state);
    if (state.step % recipe.saveEvery === 0 && state.step < stage.steps) await save?.(state);
    await new Promise(setImmediate); // lets a Ctrl-C in
  }
  state.values = state.best.values;
  layer.assign(state.values);
  return state;
}

async function begin(trial: Trial, heldOut: Int32Array): Promise<FitState> {
  const entries = await Promise.all(trial.layer.trainable.map(async (name) => [name, await trial.layer.read(name)]));
  const values = Object.fromEntries(entries) as Named<HostTensor>;
  const before = await trial.misfit(heldOut);
  return { step: 0, before, best: { misfit: before, values }, waited: 0, values, adam: adamWState(values) };
}

/** Of a weight's rate, by the end of its name. */
function factorOf(name: string, rates: Recipe['rates']): number {
  return Object.entries(rates ?? {}).find(([end]) => name.endsWith(`.${end}`))?.[1] ?? 1;
}

/** Means over the micro-batches of a step. */
async function accumulate(
  trial: Trial,
  { windows, stage }: FitOptions,
): Promise<{ readonly loss: number; readonly gradients: Named<HostTensor> }> {
  let loss = 0;
  let sum: Named<HostTensor> | undefined;
  for (let part = 0; part < stage.accumulate; part++) {
    const one = await trial.gradients(await windows.take(stage.rows));
    loss += one.loss / stage.accumulate;
    sum = sum ? added(sum, one.byWeight) : one.byWeight;
  }
  return { loss, gradients: scaled(sum!, 1 / stage.accumulate) };
}

async function look(trial: Trial, heldOut: Int32Array, state: FitState): Promise<void> {
  const misfit = await trial.misfit(heldOut);
  if (misfit < state.best.misfit) {
    state.best = { misfit, values: state.values };
    state.waited = 0;
  } else state.waited += 1;
}

function diverged(where: string, loss: number, gradients: Named<HostTensor>): never {
  const bad = Object.entries(gradients).filter(([, { data }]) =>
    (data as Float32Array).some((x) => !Number.isFinite(x)),
  );
  throw new DslaError('E_INPUT', {
    where,
    rule: `loss and gradients must be numbers (not so: ${bad.map(([name]) => name).join(', ') || 'the loss'})`,
    got: loss,
    cure: 'Lower the rate or the clip; the last checkpoint is from before.',
  });
}
