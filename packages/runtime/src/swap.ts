import type { Plan } from '@dsla/models';
import { type AttentionLayer, DslaError } from '@dsla/spec';
import { type Program, versionOf } from './program.js';

/** What a change of plan takes for a sequence that has tokens in its states. */
interface Change {
  readonly fold: AttentionLayer;
  /** States that the old version used and the new one does not. */
  readonly left: readonly string[];
  /** States that the fold writes. */
  readonly written: readonly string[];
}

/**
 * Takes one sequence from one plan to another, between two steps: rebuilds the new states from the KV caches, then frees
 * these. When it fails or is aborted, the sequence is what it was before.
 * @throws DslaError E_UNSUPPORTED when a layer cannot go that way, E_ABORTED
 */
export async function changePlan(
  program: Program,
  { slot, past, plan }: { readonly slot: number; readonly past: number; readonly plan: Plan },
  next: Plan,
  signal?: AbortSignal,
): Promise<void> {
  const changes = past === 0 ? [] : plan.flatMap((from, layer) => changeOf(program, layer, from, next[layer]!));
  if (changes.length === 0) return;
  const clear = (names: readonly string[]) => {
    for (const name of names) program.states[name]!.clear(slot);
  };
  try {
    using step = program.device.beginStep({ ids: new Int32Array(0), rows: [{ slot, past, count: 0 }] });
    for (const { fold } of changes) step.run(fold, program.states);
    await step.submit(signal);
  } catch (error) {
    clear(changes.flatMap(({ written }) => written));
    throw error;
  }
  clear(changes.flatMap(({ left }) => left));
}

function changeOf({ stages, folds }: Program, layer: number, from: string, to: string): Change[] {
  const own = stages.filter((stage) => stage.layer === layer);
  const [before, after] = [from, to].map((mixer) => own.map((stage) => versionOf(stage, mixer))) as [
    AttentionLayer[],
    AttentionLayer[],
  ];
  if (before.every((version, index) => version === after[index])) return [];
  const fold = from === 'default' ? folds[to]?.[layer] : undefined;
  if (!fold) refuse(layer, from, to);
  const used = new Set(before.flatMap(stateNames));
  const kept = new Set(after.flatMap(stateNames));
  return [
    {
      fold,
      left: [...used].filter((name) => !kept.has(name)),
      written: stateNames(fold).filter((name) => !used.has(name)),
    },
  ];
}

const stateNames = ({ graph }: AttentionLayer): string[] => graph.states.map(({ name }) => name);

function refuse(layer: number, from: string, to: string): never {
  const why =
    from === 'default'
      ? `the states of ${to} cannot be rebuilt from a KV cache`
      : `the states of ${from} do not hold the tokens that ${to === 'default' ? 'softmax attention' : to} needs`;
  throw new DslaError('E_UNSUPPORTED', {
    where: `swap of layer ${layer} from ${from} to ${to}`,
    rule: why,
    cure: 'Open a sequence with the new plan and run the tokens again from the first.',
    details: { layer, from, to },
  });
}
