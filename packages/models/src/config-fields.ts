import { z } from 'zod';

// Fields that several architectures share. Hugging Face writes null for "not set" as often as it leaves a key out.

export const count: z.ZodType<number> = integer(1);
export const positive: z.ZodType<number> = z.number('must be a number').positive('must be above 0');

/** (Not z.int, whose failure would keep `rules` from running.) */
export function integer(least: number): z.ZodType<number> {
  const error = `must be an integer of at least ${least}`;
  return z.number(error).refine((value) => Number.isSafeInteger(value) && value >= least, error);
}

export function flag(byDefault: boolean): z.ZodType<boolean> {
  return z
    .boolean('must be true or false')
    .nullish()
    .transform((value) => value ?? byDefault);
}

export function orElse<T>(field: z.ZodType<T>, byDefault: T): z.ZodType<T> {
  return field.nullish().transform((value) => value ?? byDefault);
}

/** A setting of which this version knows some values only; the first is the default. */
export function only<T extends string | boolean | number>(...known: [T, ...T[]]): z.ZodType<T> {
  const [byDefault] = known;
  return z
    .unknown()
    .nullish()
    .refine((value) => value == null || known.includes(value as T), {
      error: ({ input }) => `only ${known.join(' or ')} is supported, got ${JSON.stringify(input)}`,
    })
    .transform((value) => (value ?? byDefault) as T);
}

export const unquantised: z.ZodType<unknown> = z
  .unknown()
  .nullish()
  .refine((value) => value == null, {
    error: 'quantised checkpoints are not supported; choose one in float32, float16 or bfloat16',
  });

/** Rules over several fields: path, message, and whether it is broken; missing fields break none. */
export function rules<S extends z.ZodType>(
  schema: S,
  list: readonly (readonly [path: string, error: string, broken: (value: z.output<S>) => boolean])[],
): S {
  // `when`: also where other fields have problems, so that all are reported at once.
  return list.reduce(
    (checked, [path, error, broken]) =>
      checked.refine((value) => !broken(value), { path: [path], error, when: ({ value }) => value != null }) as S,
    schema,
  );
}
