import { DslaError } from '@dsla/spec';
import type { z } from 'zod';

/** Checks options against a schema. @throws DslaError E_INPUT that lists every problem. */
export function checkOptions<T>(schema: z.ZodType<T>, value: unknown, where: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new DslaError('E_INPUT', {
    where,
    rule: parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'options'}: ${message}`).join('; '),
    cure: 'Correct these options.',
  });
}
