import type { Tokenizer } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';
import { uniformInt } from 'pure-rand/distribution/uniformInt';
import { xoroshiro128plus } from 'pure-rand/generator/xoroshiro128plus';
import type { TextSource } from './source.js';
import { encodeByWord } from './words.js';

/** Where a stream of windows stands: plain numbers, from which it goes on exactly. */
export interface Position {
  /** Blocks of text come in a shuffled order, epoch after epoch; this is the one whose tokens come next, counted from 0. */
  readonly block: number;
  /** Tokens of it that are used up. */
  readonly skip: number;
}

/** An endless stream of token windows. */
export interface Windows {
  readonly position: Position;
  /** `rows` windows end to end, [rows * tokens]. */
  take(rows: number): Promise<Int32Array>;
}

export interface WindowOptions {
  /** Length of a window, its begin token included. */
  readonly tokens: number;
  readonly seed: number;
  readonly position?: Position;
  /** Bytes of text that are shuffled as one. */
  readonly blockBytes?: number;
}

interface Block {
  readonly number: number;
  readonly ids: readonly number[];
  used: number;
}

/**
 * Cuts a text into windows: the begin token (where the tokenizer has one), then tokens packed without gaps across blocks. Only
 * the blocks that a window needs are read and tokenised.
 * @throws DslaError E_INPUT when the text is shorter than one window, E_FORMAT for a position that this text does not have
 */
export async function openWindows(
  source: TextSource,
  tokenizer: Pick<Tokenizer, 'encode' | 'bos'>,
  { tokens, seed, position = { block: 0, skip: 0 }, blockBytes = 2 ** 16 }: WindowOptions,
): Promise<Windows> {
  const { bos } = tokenizer;
  const encode = encodeByWord(tokenizer);
  const wanted = tokens - (bos === undefined ? 0 : 1);
  if (!(Number.isInteger(wanted) && wanted > 0)) {
    throw new DslaError('E_INPUT', { where: 'windows', rule: 'tokens must be an integer of at least 2', got: tokens });
  }
  const blocks = Math.max(1, Math.ceil(source.bytes / blockBytes));
  const shuffled = shuffles(blocks, seed);
  const waiting: Block[] = [];
  let next = position.block;

  const load = async (used: number): Promise<number> => {
    const ids = encode(await blockText(source, shuffled(next), blockBytes));
    if (used > ids.length) {
      const rule = `the position must lie within block ${next} of ${ids.length} tokens`;
      throw new DslaError('E_FORMAT', { where: source.name, rule, got: used, cure: 'Use the data it was made with.' });
    }
    if (ids.length > used) waiting.push({ number: next, ids, used });
    next += 1;
    return ids.length - used;
  };
  const fill = async (): Promise<void> => {
    let ready = waiting.reduce((sum, { ids, used }) => sum + ids.length - used, 0);
    for (let loaded = 0; ready < wanted; loaded++) {
      if (loaded === blocks) {
        throw new DslaError('E_INPUT', {
          where: source.name,
          rule: `the text must fill a window of ${tokens} tokens`,
          got: `${ready + tokens - wanted} tokens`,
          cure: 'Use more text, or shorter windows.',
        });
      }
      ready += await load(0);
    }
  };
  const write = (out: Int32Array): void => {
    if (bos !== undefined) out[0] = bos;
    for (let at = tokens - wanted; at < tokens; ) {
      const block = waiting[0]!;
      const count = Math.min(tokens - at, block.ids.length - block.used);
      for (let index = 0; index < count; index++) out[at + index] = block.ids[block.used + index]!;
      at += count;
      block.used += count;
      if (block.used === block.ids.length) waiting.shift();
    }
  };

  if (position.skip > 0) await load(position.skip);
  await fill();
  return {
    get position() {
      const [first] = waiting;
      return first ? { block: first.number, skip: first.used } : { block: next, skip: 0 };
    },
    async take(rows) {
      const out = new Int32Array(rows * tokens);
      for (let row = 0; row < rows; row++) {
        await fill();
        write(out.subarray(row * tokens, (row + 1) * tokens));
      }
      return out;
    },
  };
}

/** Block of text by its number in the stream: every epoch has a permutation of its own. */
function shuffles(blocks: number, seed: number): (number: number) => number {
  let known = -1;
  let order: number[] = [];
  return (number) => {
    const epoch = Math.floor(number / blocks);
    if (epoch !== known) {
      known = epoch;
      order = [...Array(blocks).keys()];
      const random = xoroshiro128plus((seed + Math.imul(epoch, 0x9e3779b1)) | 0);
      for (let last = blocks - 1; last > 0; last--) {
        const other = uniformInt(random, 0, last);
        [order[last], order[other]] = [order[other]!, order[last]!];
      }
    }
    return order[number % blocks]!;
  };
}

/** Text from the first word that begins in the block to where the next block's begins. */
async function blockText(source: TextSource, block: number, blockBytes: number): Promise<string> {
  const [from, to] = [await cut(source, block * blockBytes), await cut(source, (block + 1) * blockBytes)];
  return (await source.read(from, to)).toString('utf8');
}

/** The first place from `at` on that follows white space; in a text without any, that begins a character. */
async function cut(source: TextSource, at: number): Promise<number> {
  if (at <= 0) return 0;
  if (at >= source.bytes) return source.bytes;
  const bytes = await source.read(at - 1, Math.min(source.bytes, at + 4096));
  const space = bytes.findIndex((byte) => byte === 0x20 || byte === 0x0a);
  if (space >= 0) return at + space;
  const character = bytes.subarray(1).findIndex((byte) => (byte & 0xc0) !== 0x80);
  return character < 0 ? source.bytes : at + character;
}
