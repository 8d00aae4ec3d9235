import { DslaError } from '@dsla/spec';
import { z } from 'zod';
import type { SamplingOptions } from './sample.js';

/** What a checkpoint says about generating from it. */
export interface GenerationConfig {
  /** Ids that end a text. */
  readonly eos: readonly number[];
  /** How its makers sample; empty where they do not say, or say greedy. */
  readonly sampling: SamplingOptions;
}

const ids = z
  .union([z.int().nonnegative(), z.array(z.int().nonnegative())])
  .nullish()
  .transform((value) => (value === null || value === undefined ? undefined : [value].flat()));
const number = z.number().nullish();
const schema = z.looseObject({
  eos_token_id: ids,
  do_sample: z.boolean().nullish(),
  temperature: number,
  top_k: number,
  top_p: number,
  repetition_penalty: number,
});

/**
 * Reads generation_config.json; the end tokens come from it, else from config.json, else they are `eos` of the tokenizer.
 * @throws DslaError E_FORMAT with every problem
 */
export function parseGenerationConfig(
  generation: unknown,
  config: unknown,
  eos: number | undefined,
  where: string,
): GenerationConfig {
  const own = check(schema, generation, `${where}/generation_config.json`);
  const model = check(z.looseObject({ eos_token_id: ids }), config, `${where}/config.json`);
  return {
    eos: own.eos_token_id ?? model.eos_token_id ?? (eos === undefined ? [] : [eos]),
    sampling: own.do_sample
      ? {
          temperature: own.temperature ?? 1,
          topK: own.top_k || undefined, // 0: off
          topP: own.top_p ?? undefined,
          repetitionPenalty: own.repetition_penalty ?? undefined,
        }
      : {},
  };
}

function check<T>(shape: z.ZodType<T>, value: unknown, where: string): T {
  const parsed = shape.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new DslaError('E_FORMAT', {
    where,
    rule: parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'file'}: ${message}`).join('; '),
    cure: 'Correct the file, or download it again.',
  });
}
