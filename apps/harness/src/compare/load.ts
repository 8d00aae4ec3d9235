import type { TextModel } from '@dsla/runtime';
import { type Device, isDslaError, type OpenOptions, type Scope, stateBytes } from '@dsla/spec';
import { openNamed } from '../backends.js';
import { type Checkpoint, hasUntuned, openModel, planOf } from '../checkpoint.js';
import { parameterCount, weightBytes } from '../measure/weights.js';
import type { Contender, Report } from '../report/report.js';
import { nameOf } from '../report/rows.js';
import type { Progress } from '../ui/progress.js';
import type { Entry } from './line-up.js';

/** A contender that runs. */
export interface Running {
  readonly entry: Entry;
  readonly contender: Contender;
  readonly model: TextModel;
}

export interface LoadOptions {
  readonly backend: string;
  readonly open: OpenOptions;
  /** Tokens that a sequence can hold. */
  readonly context: number;
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

/**
 * Loads every contender into `scope`. One that the backend or the checkpoint cannot run is left out, with a sentence in
 * `gaps`; the softmax model must run. Weights are shared by name within a device, so each checkpoint gets its own.
 */
export async function loadAll(
  entries: readonly Entry[],
  { backend, open, context, progress, signal }: LoadOptions,
  scope: Scope,
  gaps: string[],
): Promise<Running[]> {
  const devices = new Map<Checkpoint, Device>();
  const running: Running[] = [];
  progress.stage('load', entries.length);
  for (const entry of entries) {
    const { checkpoint, conversion } = entry;
    const device = devices.get(checkpoint) ?? scope.use(await openNamed(backend, open));
    devices.set(checkpoint, device);
    try {
      // The second slot is for the forks that decode.
      const model = scope.use(await openModel(checkpoint, conversion, device, { slots: 2, context, signal }));
      running.push({ entry, model, contender: contenderOf(entry, model) });
    } catch (error) {
      if (entry.family === 'softmax' || !isDslaError(error) || error.code !== 'E_UNSUPPORTED') throw error;
      gaps.push(`${entry.id} on ${backend}: ${error.message}`);
    }
    progress.step(entry.id);
  }
  return running;
}

function contenderOf({ id, family, checkpoint, conversion }: Entry, model: TextModel): Contender {
  const { level } = conversion;
  const plan = planOf(checkpoint, conversion);
  const contender = {
    id,
    model: checkpoint.name,
    family,
    level,
    layers: checkpoint.convertible,
    tuned: level > 0 && family !== 'window' && !hasUntuned(checkpoint, conversion, model),
    weightBytes: weightBytes(model.description, plan, model.device.capabilities.computeType),
  };
  return { ...contender, label: nameOf(contender) };
}

/** The checkpoints of those that run. */
export function modelsOf(running: readonly Running[]): Report['models'] {
  const unconverted = running.filter(({ entry }) => entry.conversion.level === 0);
  return unconverted.map(({ entry: { checkpoint, conversion }, model: { description } }) => ({
    id: checkpoint.name,
    name: checkpoint.name,
    architecture: description.architecture,
    parameters: parameterCount(description, planOf(checkpoint, conversion)),
    vocabulary: description.vocabulary,
    context: description.context,
    convertible: checkpoint.convertible,
    order: [...checkpoint.order],
    orderOrigin: checkpoint.orderOrigin,
  }));
}

/** Bytes of one sequence's states at every capacity, by their descriptions: what a backend allocates. */
export function cacheOf({ contender, model }: Running, lengths: readonly number[]): Report['cache'] {
  const compute = model.device.capabilities.computeType;
  const states = Object.values(model.states);
  return lengths.map((length) => ({
    contender: contender.id,
    length,
    bytes: states.reduce((sum, { spec }) => sum + stateBytes(spec, length, compute), 0),
  }));
}
