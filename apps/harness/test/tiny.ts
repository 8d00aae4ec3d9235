import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll } from 'vitest';

const golden = fileURLToPath(new URL('../../../packages/conformance/golden/models', import.meta.url));

const made: string[] = [];
afterAll(() => Promise.all(made.map((folder) => rm(folder, { recursive: true, force: true }))));

/** A folder of its own for one test file; it goes with it. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'dsla-harness-'));
  made.push(folder);
  return folder;
}

/** A golden checkpoint with random weights (vocabulary 97 or 101) and a tokenizer of single characters. */
export async function tinyCheckpoint(name: 'llama-base' | 'zamba-b', parent: string): Promise<string> {
  const folder = join(parent, name);
  await mkdir(parent, { recursive: true });
  await cp(join(golden, name), folder, { recursive: true });
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizer()));
  await writeFile(
    join(folder, 'tokenizer_config.json'),
    JSON.stringify({ add_bos_token: true, bos_token: '<s>', eos_token: '</s>' }),
  );
  return folder;
}

/** A recall.json for the tokenizer of the tiny checkpoints. */
export function plantRecall(folder: string): Promise<void> {
  const format = {
    special: { '<s>': 1, '<key>': 3, '<value>': 4, '<query>': 5 },
    ordinaryTokens: { from: 6, to: 95 },
    plant: ['<key>', 'k1', 'k2', '<value>', 'v1', 'v2'],
    question: ['<query>', 'k1', 'k2', '<value>', 'v1', 'v2'],
  };
  return writeFile(join(folder, 'recall.json'), JSON.stringify(format));
}

// Byte-level pieces: G with dot is a space, C with dot a line break; "~" has no id.
function tokenizer(): object {
  const characters = ['Ġ', 'Ċ', ...Array.from({ length: 93 }, (_, index) => String.fromCharCode(33 + index))];
  const vocab = Object.fromEntries(characters.map((character, index) => [character, index + 3]).slice(0, 94));
  const special = ['<unk>', '<s>', '</s>'].map((content, id) => ({ id, content, special: true }));
  return {
    version: '1.0',
    added_tokens: special.map((token) => ({
      ...token,
      lstrip: false,
      rstrip: false,
      single_word: false,
      normalized: false,
    })),
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: { type: 'BPE', unk_token: null, ignore_merges: false, vocab, merges: [] },
  };
}
