import { type Plan, planAt } from '@dsla/models';
import { type Estimate, type Evidence, estimate, type LayerOrder, orderBy } from '@dsla/policy';
import { DslaError, throwIfAborted } from '@dsla/spec';
import { uniformInt } from 'pure-rand/distribution/uniformInt';
import { xoroshiro128plus } from 'pure-rand/generator/xoroshiro128plus';
import { lastRowEntropy } from './entropy.js';
import { disposeAll, evaluate, windowsOf } from './evaluate.js';
import { fit } from './fit.js';
import type { Recipe } from './recipe.js';
import type { Student } from './student.js';
import { queryKeyTape } from './tapes.js';
import { matchTrial } from './trial.js';
import type { Windows } from './windows.js';

export interface SensitivityOptions {
  /** Its `match` stage is the short fit of every layer; 0 steps: layers are judged untuned. */
  readonly recipe: Recipe;
  readonly windows: Windows;
  /** Windows on which layers are judged, [windows * recipe.tokens]. */
  readonly heldOut: Int32Array;
  readonly signal?: AbortSignal;
  /** Called after every piece of work. */
  readonly onProgress?: (done: number, total: number, what: string) => void;
}

/** Layers by the KL that each costs as the only converted one, least first. */
export async function orderByKl(student: Student, options: SensitivityOptions): Promise<LayerOrder> {
  const alone = await measureAlone(student, options);
  return {
    order: orderBy(alone.map(({ kl }) => kl.value)),
    keep: 0,
    metric: 'kl',
    origin: `each layer alone after ${options.recipe.match.steps} steps, by the KL of the logits`,
    evidence: alone.map(evidenceOf),
  };
}

/**
 * Layers that lose recall last, by what they lose; the others by KL. `recall` is the share of right answers under a plan,
 * 0..1; a loss up to `tolerance` is none. The layers that lose more are the ones to keep.
 */
export async function orderByRecall(
  student: Student,
  recall: (plan: Plan) => Promise<number>,
  options: SensitivityOptions,
  tolerance = 0.02,
): Promise<LayerOrder> {
  const alone = await measureAlone(student, options);
  const full = await recall(planOf(student, []));
  const lost: number[] = [];
  for (const { layer } of alone) lost.push(full - (await recall(planOf(student, [layer]))));
  const losers = orderBy(lost).filter((layer) => lost[layer]! > tolerance);
  const others = orderBy(alone.map(({ kl }) => kl.value)).filter((layer) => lost[layer]! <= tolerance);
  return {
    order: [...others, ...losers],
    keep: losers.length,
    metric: 'recall',
    origin: `each layer alone after ${options.recipe.match.steps} steps: layers that lose recall last, the others by KL`,
    evidence: alone.map((each) => ({ ...evidenceOf(each), recallLoss: lost[each.layer]! })),
  };
}

/** Always next the layer that costs the least KL on the hybrid so far: damages do not add up. L (L + 1) / 2 hybrids. */
export async function orderGreedily(student: Student, options: SensitivityOptions): Promise<LayerOrder> {
  const { recipe, heldOut, signal, onProgress } = options;
  const misfits = await fitEach(student, options);
  const rest = new Set(misfits.keys());
  const order: number[] = [];
  const evidence: Evidence[] = [];
  const total = (rest.size * (rest.size + 1)) / 2;
  for (let done = 0; rest.size > 0; ) {
    let best: { layer: number; kl: Estimate } | undefined;
    for (const layer of rest) {
      const { kl } = await evaluate(student, planOf(student, [...order, layer]), heldOut, recipe.tokens, signal);
      if (!best || kl.value < best.kl.value) best = { layer, kl };
      onProgress?.(++done, total, `level ${order.length + 1}, layer ${layer}`);
    }
    const { layer, kl } = best!;
    rest.delete(layer);
    order.push(layer);
    evidence.push({ layer, level: order.length, ...interval(kl) });
  }
  const origin = `greedily on the hybrid so far, each layer after ${recipe.match.steps} steps, by the KL of the logits`;
  return { order, keep: 0, metric: 'greedy', origin, evidence };
}

/** Layers by the entropy of the last query's attention, least first (arXiv 2506.09316 eq. 11); mean over many windows. */
export async function orderByEntropy(
  student: Student,
  { recipe: { tokens }, heldOut, signal, onProgress }: Omit<SensitivityOptions, 'windows'>,
): Promise<LayerOrder> {
  const { description, device, weights } = student;
  const entropies: Estimate[] = [];
  for (let layer = 0; layer < description.convertible; layer++) {
    const { tape, attention } = queryKeyTape(description, layer);
    using compiled = await device.compileTrainable(tape, weights, [], signal);
    const seen: number[] = [];
    for (const ids of windowsOf(heldOut, tokens)) {
      throwIfAborted(signal, 'order');
      const outputs = compiled.forward({ rows: 1, tokens, ids });
      try {
        const [q, k] = [await device.download(outputs.q!), await device.download(outputs.k!)];
        seen.push(lastRowEntropy({ q: q.data as Float32Array, k: k.data as Float32Array, tokens }, attention));
      } finally {
        disposeAll(outputs);
      }
    }
    entropies.push(estimate(seen));
    onProgress?.(layer + 1, description.convertible, `layer ${layer}`);
  }
  return {
    order: orderBy(entropies.map(({ value }) => value)),
    keep: 0,
    metric: 'entropy',
    origin: `entropy of the last query's attention over ${heldOut.length / tokens} windows of ${tokens} tokens`,
    evidence: entropies.map(({ value, low, high, n }, layer) => ({ layer, entropy: value, low, high, n })),
  };
}

/** Bottom to top, or top to bottom (which the published code falls back to). */
export function orderByDepth(layers: number, from: 'bottom' | 'top' = 'bottom'): LayerOrder {
  const order = [...Array(layers).keys()];
  if (from === 'top') order.reverse();
  return { order, keep: 0, metric: 'depth', origin: `from the ${from}, nothing measured` };
}

export function orderAtRandom(layers: number, seed: number): LayerOrder {
  if (!Number.isInteger(seed)) {
    throw new DslaError('E_INPUT', { where: 'order', rule: 'the seed must be an integer', got: seed });
  }
  const random = xoroshiro128plus(seed);
  const order = [...Array(layers).keys()];
  for (let last = layers - 1; last > 0; last--) {
    const other = uniformInt(random, 0, last);
    [order[last], order[other]] = [order[other]!, order[last]!];
  }
  return { order, keep: 0, metric: 'random', origin: `at random, seed ${seed}` };
}

interface Alone {
  readonly layer: number;
  readonly kl: Estimate;
  readonly misfit: { readonly before: number; readonly after: number };
}

async function measureAlone(student: Student, options: SensitivityOptions): Promise<Alone[]> {
  const { recipe, heldOut, signal, onProgress } = options;
  const misfits = await fitEach(student, options);
  const alone: Alone[] = [];
  for (const [layer, misfit] of misfits.entries()) {
    const { kl } = await evaluate(student, planOf(student, [layer]), heldOut, recipe.tokens, signal);
    alone.push({ layer, kl, misfit });
    onProgress?.(layer + 1, misfits.length, `layer ${layer} alone`);
  }
  return alone;
}

/** The short fit of every layer on the teacher's inputs: the same for every hybrid that it will be in. */
async function fitEach(
  student: Student,
  { recipe, windows, heldOut, signal, onProgress }: SensitivityOptions,
): Promise<Alone['misfit'][]> {
  const layers = student.description.convertible;
  const misfits: Alone['misfit'][] = [];
  for (let layer = 0; layer < layers; layer++) {
    await using trial = await matchTrial(student, layer, recipe, heldOut, signal);
    const { values, before, best } = await fit(trial, {
      where: `layer ${layer}, match`,
      windows,
      heldOut,
      recipe,
      stage: recipe.match,
      signal,
    });
    for (const [name, value] of Object.entries(values)) student.tuned.set(name, value);
    misfits.push({ before, after: best.misfit });
    onProgress?.(layer + 1, layers, `fit of layer ${layer}`);
  }
  return misfits;
}

/** The plan that converts just these layers: for measuring; what is served is a prefix. */
function planOf({ description, mixer }: Student, layers: readonly number[]): Plan {
  const rest = [...Array(description.convertible).keys()].filter((layer) => !layers.includes(layer));
  return planAt([...layers, ...rest], layers.length, mixer.name, description.convertible);
}

function evidenceOf({ layer, kl, misfit }: Alone): Evidence {
  return { layer, ...interval(kl), misfitBefore: misfit.before, misfitAfter: misfit.after };
}

const interval = ({ value, low, high, n }: Estimate) => ({ kl: value, low, high, n });
