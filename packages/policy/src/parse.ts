import { DslaError } from '@dsla/spec';
import type { z } from 'zod';

/** Checks a value that came from a file. @throws DslaError E_FORMAT that lists every problem */
export function parse<T>(schema: z.ZodType<T>, value: unknown, where: string, cure: string): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const rule = parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'file'}: ${message}`).join('; ');
  throw new DslaError('E_FORMAT', { where, rule, cure });
}
