import type { Tokenizer } from '@dsla/runtime';

type Encode = (text: string) => readonly number[];

/** Words whose tokens are remembered at most. */
const most = 2 ** 17;

/**
 * Encodes word by word, remembering every word: some twenty times faster on a text of millions of words. Exact where no token
 * reaches across a space and a text is encoded as if a space stood before it, as with Llama's tokenizers; whether that is so is
 * tried on the first text, and every text is encoded whole where it is not.
 */
export function encodeByWord({ encode }: Pick<Tokenizer, 'encode'>): Encode {
  const known = new Map<string, readonly number[]>();
  const whole: Encode = (text) => encode(text, { bos: false });
  const byWord: Encode = (text) =>
    text.split(/(?<=[^ ]) (?=.)/s).flatMap((word) => {
      const old = known.get(word);
      if (old) return old;
      if (known.size === most) known.clear();
      const ids = whole(word);
      known.set(word, ids);
      return ids;
    });
  let chosen: Encode | undefined;
  return (text) => {
    if (chosen) return chosen(text);
    const wanted = whole(text);
    const got = byWord(text);
    chosen = wanted.length === got.length && wanted.every((id, index) => id === got[index]) ? byWord : whole;
    return wanted;
  };
}
