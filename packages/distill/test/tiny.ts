import { cp, mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { tfjsBackend } from '@dsla/backend-tfjs';
import { isTrainingDevice, type TrainingDevice } from '@dsla/spec';
import { foldableRecipe, type Recipe } from '../src/recipe.js';
import { type TextSource, textSource } from '../src/source.js';

const golden = fileURLToPath(new URL('../../conformance/golden/models', import.meta.url));

export function temporaryFolder(): Promise<string> {
  return mkdtemp(join(tmpdir(), 'dsla-distill-'));
}

/** A golden Llama of two layers with random weights, and a tokenizer of single characters. */
export async function tinyBase(name = 'llama-base'): Promise<string> {
  const folder = join(await temporaryFolder(), name);
  await cp(join(golden, name), folder, { recursive: true });
  const characters = [...'abcdefghijklmnopqrstuvwxyzĠĊ'];
  const special = ['<unk>', '<s>', '</s>'];
  const flags = { special: true, lstrip: false, rstrip: false, single_word: false, normalized: false };
  const bytes = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  const tokenizer = {
    version: '1.0',
    added_tokens: special.map((content, id) => ({ id, content, ...flags })),
    pre_tokenizer: bytes,
    decoder: bytes,
    model: { type: 'BPE', vocab: Object.fromEntries(characters.map((piece, at) => [piece, at + 3])), merges: [] },
  };
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer));
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ bos_token: '<s>', add_bos_token: true }));
  return folder;
}

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
