import type { Tokenizer } from './tokenizer.js';

/** Text of a growing sequence of tokens, piece by piece. What was before and the pieces are together `decode` of all ids. */
export interface Detokenizer {
  /** The text that became final with this token; empty while a character is incomplete. */
  push(id: number): string;
  /** The rest: an incomplete character comes as U+FFFD. */
  flush(): string;
}

/**
 * Decodes only the ids since the last but one piece of text, whose own text shows what is new (what a token reads as may
 * depend on the one before it: leading spaces, runs of byte pieces). `before`: ids that the text continues, of a prompt.
 */
export function createDetokenizer(tokenizer: Pick<Tokenizer, 'decode'>, before: readonly number[] = []): Detokenizer {
  let known = [...before]; // ids of the last piece; decode to `shown`
  let shown = tokenizer.decode(known).replace(/\uFFFD+$/, '');
  let held: number[] = []; // ids since then

  const release = (text: string): string => {
    const piece = text.slice(shown.length);
    const own = tokenizer.decode(held);
    // Ids without a text of their own (special tokens, a space that is stripped at the start) cannot stand for the beginning.
    [known, shown] = own === '' ? [[...known, ...held], text] : [held, own];
    held = [];
    return piece;
  };
  return {
    push(id) {
      held.push(id);
      const text = tokenizer.decode([...known, ...held]);
      // A trailing U+FFFD may be a character whose other bytes are still to come.
      return text.length > shown.length && !text.endsWith('\uFFFD') ? release(text) : '';
    },
    flush: () => (held.length === 0 ? '' : release(tokenizer.decode([...known, ...held]))),
  };
}

/** Holds back what may become a stop string, and ends at the first one, of which nothing is let through. */
export interface StopScanner {
  /** Whether a stop string was found; from then on nothing more comes. */
  readonly stopped: boolean;
  push(text: string): string;
  /** What was held back and did not become a stop string. */
  flush(): string;
}

export function createStopScanner(stops: readonly string[]): StopScanner {
  let held = '';
  let stopped = false;
  return {
    get stopped() {
      return stopped;
    },
    push(text) {
      if (stopped) return '';
      held += text;
      const found = stops.map((stop) => held.indexOf(stop)).filter((index) => index >= 0);
      stopped = found.length > 0;
      const end = stopped ? Math.min(...found) : held.length - overlap(held, stops);
      const piece = held.slice(0, end);
      held = stopped ? '' : held.slice(end);
      return piece;
    },
    flush() {
      const rest = held;
      held = '';
      return rest;
    },
  };
}

/** Length of the longest end of `text` that begins a stop string. */
function overlap(text: string, stops: readonly string[]): number {
  const longest = Math.max(0, ...stops.map((stop) => stop.length - 1));
  for (let length = Math.min(longest, text.length); length > 0; length--) {
    const tail = text.slice(text.length - length);
    if (stops.some((stop) => stop.startsWith(tail))) return length;
  }
  return 0;
}
