import type { Sequence, TextModel, Tokenizer } from '@dsla/runtime';

export interface Double {
  readonly vocabulary: number;
  /** Logits of the next token, by the tokens before it. */
  readonly next: (history: readonly number[]) => ArrayLike<number>;
  readonly slots?: number;
  readonly context?: number;
  readonly tokenizer?: Tokenizer;
}

/** A model whose every probability is known beforehand, so that what is measured is the measurement. */
export function modelDouble({ vocabulary, next, slots = 2, context = 1000, tokenizer }: Double): TextModel {
  const histories = new Map<Sequence, number[]>();
  const model = {
    description: { vocabulary },
    tokenizer,
    slots,
    context,
    open(plan = []) {
      if (histories.size === slots) throw new Error('no slot is free');
      const own: number[] = [];
      const sequence: Sequence = {
        slot: histories.size,
        plan,
        get past() {
          return own.length;
        },
        [Symbol.dispose]: () => void histories.delete(sequence),
      };
      histories.set(sequence, own);
      return sequence;
    },
    async run(inputs, { logits = 'last', signal } = {}) {
      signal?.throwIfAborted();
      return inputs.map(({ sequence, ids }) => {
        const history = histories.get(sequence)!;
        const rows = Array.from(ids, (id, index) => {
          history.push(id);
          if (history.length > context) throw new Error('too many tokens');
          const wanted = logits === 'all' || (logits === 'last' && index === ids.length - 1);
          return wanted ? Array.from(next(history)) : [];
        });
        return Float32Array.from(rows.flat());
      });
    },
  } satisfies Partial<Record<keyof TextModel, unknown>> & Pick<TextModel, 'open' | 'run'>;
  return model as unknown as TextModel;
}
