import type { Plan } from '@dsla/models';
import type { AttentionLayer, DeviceBuffer, HostTensor, Named, Step, StepBatch } from '@dsla/spec';
import { type Program, type Stage, versionOf } from './program.js';

/** Which head to run, and for which rows of the batch; all of them when `rows` is left out. */
export interface HeadRun {
  readonly layer: AttentionLayer;
  readonly rows?: readonly number[];
}

/**
 * The forward pass, of every architecture and mixer. `plans`: one a row of the batch. Returns the head's logits,
 * [rows, vocabulary] or [tokens, vocabulary].
 */
export async function forward(
  program: Program,
  batch: StepBatch,
  plans: readonly Plan[],
  head?: HeadRun,
  signal?: AbortSignal,
): Promise<HostTensor | undefined> {
  using step = record(program, batch, plans, head);
  await step.submit(signal);
  return head && (await program.device.download(step.value('logits')));
}

/** The forward pass as a step that is not submitted yet; the caller disposes it. `values`: see `Device.beginStep`. */
export function record(
  program: Program,
  batch: StepBatch,
  plans: readonly Plan[],
  head?: HeadRun,
  values?: Named<DeviceBuffer>,
): Step {
  const step = program.device.beginStep(batch, values);
  try {
    for (const stage of program.stages) {
      for (const [layer, rows] of rowsByVersion(stage, plans)) step.run(layer, program.states, rows);
    }
    if (head) step.run(head.layer, program.states, head.rows);
    return step;
  } catch (error) {
    step[Symbol.dispose]();
    throw error;
  }
}

/** The versions of a stage that a batch uses, each with its rows; without rows where all use one version. */
function rowsByVersion(stage: Stage, plans: readonly Plan[]): Iterable<[AttentionLayer, number[]?]> {
  const { layer } = stage;
  if (layer === undefined) return [[versionOf(stage, 'default')]];
  const groups = new Map<AttentionLayer, number[]>();
  for (const [row, plan] of plans.entries()) {
    const version = versionOf(stage, plan[layer]!);
    const rows = groups.get(version);
    if (rows) rows.push(row);
    else groups.set(version, [row]);
  }
  return groups.size === 1 ? [[groups.keys().next().value!]] : groups;
}
