import { readFile } from 'node:fs/promises';
import { DslaError } from '@dsla/spec';
import type { z } from 'zod';

/**
 * Reads one JSON value a line; empty lines are skipped.
 * @throws DslaError E_IO; E_FORMAT that names file, line and every problem of the line
 */
export async function readJsonl<T>(file: string, schema: z.ZodType<T>): Promise<T[]> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (cause) {
    throw new DslaError('E_IO', {
      where: file,
      rule: `it could not be read (${(cause as Error).message})`,
      cure: 'Check the path.',
      cause,
    });
  }
  return text
    .split('\n')
    .flatMap((line, index) => (line.trim() === '' ? [] : [parseLine(line, schema, `${file}:${index + 1}`)]));
}

function parseLine<T>(line: string, schema: z.ZodType<T>, where: string): T {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw new DslaError('E_FORMAT', {
      where,
      rule: 'the line must be JSON',
      got: line,
      cure: 'Correct the line.',
      cause,
    });
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const problems = parsed.error.issues.map(({ path, message }) => `${path.join('.') || 'line'}: ${message}`);
  throw new DslaError('E_FORMAT', { where, rule: problems.join('; '), got: line, cure: 'Correct the line.' });
}
