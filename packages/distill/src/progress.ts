import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { DslaError, type HostTensor, type Named, type Weight } from '@dsla/spec';
import type { LevelResult, Misfit } from './evaluate.js';
import type { FitState } from './fit.js';
import { readTensors, writeTensors } from './tensors.js';
import type { Position } from './windows.js';

/** Where a chain stands. With it a killed run goes on exactly. */
export interface Progress {
  /** Tasks done. */
  task: number;
  position: Position;
  /** The level that is being tuned, before its layer was. */
  untuned: LevelResult['untuned'] | undefined;
  readonly misfits: Misfit[];
  readonly levels: LevelResult[];
  /** Values of the layers that are done. */
  readonly tuned: ReadonlyMap<Weight, HostTensor>;
  /** Of the task that is under way. */
  fit: FitState | undefined;
}

/** What must be the same for a run to be gone on with. */
export type Identity = Readonly<Record<string, unknown>>;

interface Note {
  readonly format: 'dsla-distill';
  readonly version: 1;
  readonly identity: Identity;
  readonly progress: Omit<Progress, 'tuned' | 'fit'>;
  readonly fit: { step: number; before: number; misfit: number; waited: number; adam: number } | null;
}

const fileName = 'resume.safetensors';

export function hasProgress(folder: string): boolean {
  return existsSync(join(folder, fileName));
}

/** @throws DslaError E_IO; the checkpoint before stays */
export async function saveProgress(folder: string, identity: Identity, progress: Progress): Promise<void> {
  const { tuned, fit, ...rest } = progress;
  const tensors = new Map<string, HostTensor>();
  const add = (group: string, entries: Iterable<readonly [string, HostTensor]>) => {
    for (const [name, tensor] of entries) tensors.set(`${group}/${name}`, tensor);
  };
  add('tuned', tuned);
  if (fit) {
    add('value', Object.entries(fit.values));
    add('best', Object.entries(fit.best.values));
    for (const moment of ['first', 'second'] as const) {
      const shaped = [...fit.adam[moment]].map(([name, data]) => [name, { ...fit.values[name]!, data }] as const);
      add(moment, shaped);
    }
  }
  const note: Note = {
    format: 'dsla-distill',
    version: 1,
    identity,
    progress: rest,
    fit: fit
      ? { step: fit.step, before: fit.before, misfit: fit.best.misfit, waited: fit.waited, adam: fit.adam.step }
      : null,
  };
  await writeTensors(join(folder, fileName), tensors, note);
}

/** @throws DslaError E_IO, E_FORMAT for a damaged checkpoint, E_CONFIG for one of another run */
export async function loadProgress(folder: string, identity: Identity): Promise<Progress> {
  const path = join(folder, fileName);
  const { tensors, note: read } = await readTensors(path);
  const note = read as Note; // ours: its hash was checked
  if (note.format !== 'dsla-distill' || note.version !== 1) {
    const got = `${note.format} ${note.version}`;
    throw new DslaError('E_FORMAT', { where: path, rule: 'it must be a checkpoint of this version', got });
  }
  const written = JSON.parse(JSON.stringify(identity)) as Identity;
  const keys = new Set([...Object.keys(written), ...Object.keys(note.identity)]);
  const differ = [...keys].filter((key) => !isDeepStrictEqual(written[key], note.identity[key]));
  if (differ.length > 0) {
    throw new DslaError('E_CONFIG', {
      where: path,
      rule: `the checkpoint belongs to another run (${differ.join(', ')} differ)`,
      cure: 'Pass what that run was given, or choose another folder.',
    });
  }
  const group = (name: string) => {
    const entries = [...tensors].filter(([key]) => key.startsWith(`${name}/`));
    return new Map(entries.map(([key, tensor]) => [key.slice(name.length + 1), tensor]));
  };
  const arrays = (name: string) => new Map([...group(name)].map(([key, { data }]) => [key, data as Float32Array]));
  const named = (name: string): Named<HostTensor> => Object.fromEntries(group(name));
  const { fit } = note;
  return {
    ...note.progress,
    untuned: note.progress.untuned,
    tuned: group('tuned'),
    fit: fit
      ? {
          step: fit.step,
          before: fit.before,
          best: { misfit: fit.misfit, values: named('best') },
          waited: fit.waited,
          values: named('value'),
          adam: { step: fit.adam, first: arrays('first'), second: arrays('second') },
        }
      : undefined,
  };
}
