// What is kept of the logits of a token, so that those of thousands fit a small file.

/** Logits of so many ids, spread over the vocabulary, others for every token. */
const samples = 32;
/** The first id and the second, their logits, then the samples. */
const entry = 4 + samples;

/** [tokens, entry] of logits [tokens, vocabulary], whose first token is the `at`-th of its prompt. */
export function digest(logits: Float32Array, vocabulary: number, at: number): Float32Array<ArrayBuffer> {
  const tokens = logits.length / vocabulary;
  const kept = new Float32Array(tokens * entry);
  for (let t = 0; t < tokens; t++) {
    const own = logits.subarray(t * vocabulary, (t + 1) * vocabulary);
    const first = highest(own);
    const second = highest(own, first);
    kept.set([first, second, own[first]!, own[second]!], t * entry);
    for (let s = 0; s < samples; s++)
      kept[t * entry + 4 + s] = own[Math.floor((s * vocabulary) / samples + at + t) % vocabulary]!;
  }
  return kept;
}

export interface Agreement {
  readonly tokens: number;
  /** Of the sampled logits: RMS of the differences, and its ratio to their own. */
  readonly error: number;
  readonly rms: number;
  /** Tokens at which the same id is first. */
  readonly first: number;
  /** The other ones: the truth's first logit there, and by how much it is before the second. */
  readonly others: readonly { readonly token: number; readonly margin: number; readonly logit: number }[];
}

/** Two digests of logits of the same tokens. */
export function agreement(got: Float32Array, want: Float32Array): Agreement {
  const tokens = want.length / entry;
  if (got.length !== want.length) throw new Error(`the truth is of ${tokens} tokens, not ${got.length / entry}`);
  const others = [];
  let [error, size] = [0, 0];
  for (let t = 0; t < tokens; t++) {
    const [own, truth] = [got, want].map((all) => all.subarray(t * entry, (t + 1) * entry)) as [
      Float32Array,
      Float32Array,
    ];
    if (own[0] !== truth[0]) others.push({ token: t, margin: truth[2]! - truth[3]!, logit: truth[2]! });
    for (let s = 4; s < entry; s++) {
      error += (own[s]! - truth[s]!) ** 2;
      size += truth[s]! ** 2;
    }
  }
  const mean = Math.sqrt(error / (tokens * samples));
  return { tokens, error: mean, rms: Math.sqrt(error / size), first: tokens - others.length, others };
}

/** The id of the highest logit, but for one. */
export function highest(logits: Float32Array, but = -1): number {
  let best = but === 0 ? 1 : 0;
  for (let i = 0; i < logits.length; i++) if (i !== but && logits[i]! > logits[best]!) best = i;
  return best;
}
