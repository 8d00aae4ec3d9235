import type { Plan } from '@dsla/models';
import type { AttentionLayer, HostTensor, StepBatch } from '@dsla/spec';
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
  using step = program.device.beginStep(batch);
  for (const stage of program.stages) {
    for (const [layer, rows] of rowsByVersion(stage, plans)) step.run(layer, program.states, rows);
  }
  if (head) step.run(head.layer, program.states, head.rows);
  await step.submit(signal);
  return head && (await program.device.download(step.value('logits')));
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
