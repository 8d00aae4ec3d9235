import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll } from 'vitest';

const golden = fileURLToPath(new URL('../../conformance/golden/models', import.meta.url));

const made: string[] = [];
afterAll(() => Promise.all(made.map((folder) => rm(folder, { recursive: true, force: true }))));

/** Goes when the tests of the file have ended. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'dsla-distill-'));
  made.push(folder);
  return folder;
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
