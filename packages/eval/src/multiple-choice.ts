import type { TextModel, Tokenizer } from '@dsla/runtime';
import { DslaError } from '@dsla/spec';
import { z } from 'zod';
import { readJsonl } from './jsonl.js';
import { type EvalOptions, logProbabilities, type ScoreRequest } from './score.js';
import { proportion, type Summary } from './summary.js';

/** A question: which continuation, each after its own context, is the right one. */
export interface Question {
  readonly options: readonly { readonly context: string; readonly continuation: string }[];
  /** Index of the right option. */
  readonly gold: number;
}

export interface QuestionOptions {
  /** Between a query and its choice; llm-foundry uses "\nAnswer: " for PIQA, ARC and BoolQ. One space unless said. */
  readonly delimiter?: string | undefined;
}

const gold = z.int().nonnegative();

const questionSchema = (delimiter: string): z.ZodType<Question> =>
  z
    .union(
      [
        z
          .object({ query: z.string(), choices: z.array(z.string().min(1)).min(2), gold })
          .transform(({ query, choices, gold }) => {
            const context = query.trimEnd() + delimiter;
            return { options: choices.map((continuation) => ({ context, continuation })), gold };
          }),
        z
          .object({ context_options: z.array(z.string()).min(2), continuation: z.string().min(1), gold })
          .transform(({ context_options: contexts, continuation, gold }) => {
            return { options: contexts.map((context) => ({ context: `${context.trimEnd()} `, continuation })), gold };
          }),
        z
          .object({ sentence_good: z.string().min(1), sentence_bad: z.string().min(1) })
          .transform(({ sentence_good: good, sentence_bad: bad }) => {
            return { options: [good, bad].map((continuation) => ({ context: '', continuation })), gold: 0 };
          }),
      ],
      'must be {query, choices, gold}, {context_options, continuation, gold} or {sentence_good, sentence_bad}',
    )
    .refine(({ options, gold }) => gold < options.length, {
      path: ['gold'],
      message: 'must be the index of an option',
    });

/**
 * Reads questions in the forms of llm-foundry ({query, choices, gold}, {context_options, continuation, gold}) and of BLiMP
 * ({sentence_good, sentence_bad}).
 * @throws DslaError E_IO; E_FORMAT with file and line
 */
export const readQuestions = (file: string, { delimiter = ' ' }: QuestionOptions = {}): Promise<Question[]> =>
  readJsonl(file, questionSchema(delimiter));

/** Accuracy by three rules of what the likeliest option is. */
export interface MultipleChoice {
  /** Largest log-likelihood: `acc` of lm-evaluation-harness, the rule of BLiMP. */
  readonly sum: Summary;
  /** Largest log-likelihood a byte of the continuation: `acc_norm` of lm-evaluation-harness (which counts characters). */
  readonly perByte: Summary;
  /** Largest log-likelihood a token of the continuation: the rule of llm-foundry. */
  readonly perToken: Summary;
  /** Options whose context was cut at the start to fit the model. */
  readonly truncated: number;
}

/**
 * Answers questions by log-likelihood of the continuation.
 * @throws DslaError E_INPUT: no questions, or a continuation longer than the context; E_ABORTED
 */
export async function multipleChoice(
  model: TextModel,
  questions: readonly Question[],
  options: EvalOptions = {},
): Promise<MultipleChoice> {
  if (questions.length === 0) {
    throw new DslaError('E_INPUT', { where: 'multiple choice', rule: 'there must be at least one question', got: 0 });
  }
  const requests = questions.flatMap((question) => question.options.map((option) => requestOf(model, option)));
  const scores = await logProbabilities(model, requests, options);
  const sums = scores.map((score) => score.reduce((total, value) => total + value, 0));
  const rightBy = (what: string, lengthOf: (index: number, continuation: string) => number): Summary => {
    let first = 0; // request of the question's first option
    const right = questions.filter((question) => {
      const values = question.options.map(({ continuation }, option) => {
        return sums[first + option]! / lengthOf(first + option, continuation);
      });
      first += question.options.length;
      return values.indexOf(Math.max(...values)) === question.gold;
    });
    return proportion(right.length, questions.length, `zero-shot; the option with the largest log-likelihood${what}`);
  };
  return {
    sum: rightBy('', () => 1),
    perByte: rightBy(' a byte of the continuation', (_, continuation) => Buffer.byteLength(continuation.trim())),
    perToken: rightBy(' a token of the continuation', (index) => scores[index]!.length),
    truncated: requests.filter(({ cut }) => cut).length,
  };
}

/** Spaces at the end of a context belong to the continuation, as tokenizers put them before a word. */
function requestOf(
  { tokenizer, context: limit }: TextModel,
  { context, continuation }: Question['options'][number],
): ScoreRequest & { readonly cut: boolean } {
  const before = context.trimEnd();
  const whole = tokenizer.encode(context + continuation, { bos: true });
  const shared = before === '' ? start(tokenizer) : commonLength(tokenizer.encode(before, { bos: true }), whole);
  const from = Math.max(1, Math.min(shared, whole.length - 1));
  const excess = whole.length - 1 - limit;
  if (excess <= 0) return { ids: whole, from, cut: false };
  const begin = start(tokenizer);
  if (from - excess <= begin) {
    throw new DslaError('E_INPUT', {
      where: 'multiple choice',
      rule: `a continuation must fit the context of ${limit}`,
      got: `${whole.length - from} tokens`,
      cure: 'Load the model with a larger context.',
    });
  }
  return { ids: [...whole.slice(0, begin), ...whole.slice(begin + excess)], from: from - excess, cut: true };
}

const start = ({ bos }: Tokenizer): number => (bos === undefined ? 0 : 1);

/** The last token of a context may be another one when something follows; from there on it is scored. */
function commonLength(a: readonly number[], b: readonly number[]): number {
  const end = a.findIndex((id, index) => id !== b[index]);
  return end < 0 ? a.length : end;
}
