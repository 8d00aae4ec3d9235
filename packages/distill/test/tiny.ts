import { tfjsBackend } from '@dsla/backend-tfjs';
import { isTrainingDevice, type TrainingDevice } from '@dsla/spec';
import { foldableRecipe, type Recipe } from '../src/recipe.js';
import { type TextSource, textSource } from '../src/source.js';

export async function trainer(): Promise<TrainingDevice> {
  const device = await tfjsBackend.open({ extra: { engine: 'wasm' } });
  if (!isTrainingDevice(device)) throw new Error('tfjs must train');
  return device;
}

/** Letters that repeat with a period of some hundred words. */
function letters(count: number, seed: number): TextSource {
  let state = seed;
  const next = (below: number) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  const word = () => Array.from({ length: 2 + next(5) }, () => String.fromCharCode(97 + next(26))).join('');
  return textSource(`letters ${seed}`, Array.from({ length: count }, word).join(' '));
}

export const data: TextSource = letters(2000, 1);
export const heldOut: TextSource = letters(200, 2);

export const options = { kind: 'dual', window: 4, sinks: 1, logWeight: -3 } as const;

export const recipe: Recipe = {
  ...foldableRecipe,
  match: { ...foldableRecipe.match, steps: 8, rows: 2, rate: 3e-2 },
  logits: { ...foldableRecipe.logits, steps: 4, rows: 1, rate: 1e-2 },
  tokens: 24,
  heldOut: 2,
  checkEvery: 4,
  saveEvery: 3,
};
