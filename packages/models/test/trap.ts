import { bindWeights, describe, type ModelConfig, type ModelDescription } from '../src/index.js';
import { distance, type Golden, openGolden } from './golden.js';
import { runner } from './run.js';

/** A golden model, about to be spoiled. */
export interface Scene<Config> {
  readonly d: ModelDescription;
  readonly config: Config;
  /** Values of a weight of the description. */
  read(name: string): Promise<Float32Array>;
}

/** A known way to get an architecture subtly wrong. */
export interface Trap<Config> {
  readonly trap: string;
  readonly model: string;
  readonly spoil: (scene: Scene<Config>) => ModelDescription | Promise<ModelDescription>;
  /** Distance from the golden logits: above 1e-2, unless the trap is a subtle one. */
  readonly between?: readonly [least: number, most: number];
}

/** Distance of the changed model from the golden logits, over a prefill and five decode steps. */
export async function missBy<Config extends ModelConfig>({
  model,
  spoil,
}: Pick<Trap<Config>, 'model' | 'spoil'>): Promise<number> {
  await using golden = await openGolden(model);
  const d = describe(golden.config);
  const weights = bindWeights(d, golden.checkpoint);
  const read = async (name: string) => (await weights.read(name, 'f32')).data as Float32Array;
  return await miss(golden, await spoil({ d, config: golden.config as Config, read }));
}

async function miss(golden: Golden, description: ModelDescription): Promise<number> {
  const run = await runner(description, bindWeights(description, golden.checkpoint), 18);
  const ids = await golden.ids();
  const logits = [await run.feed(ids.subarray(0, 13))];
  for (let at = 13; at < 18; at++) logits.push(await run.feed(ids.subarray(at, at + 1)));
  return distance(Float32Array.from(logits.flatMap((part) => [...part])), await golden.floats('logits'));
}

/** 0, 1, ... count - 1. */
export function range(count: number): number[] {
  return Array.from({ length: count }, (_, i) => i);
}
