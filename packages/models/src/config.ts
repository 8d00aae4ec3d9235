import { DslaError } from '@dsla/spec';
import type { z } from 'zod';
import { type LlamaConfig, llamaSchema } from './config-llama.js';
import { type ZambaConfig, zambaSchema } from './config-zamba.js';

export type ModelConfig = LlamaConfig | ZambaConfig;

const schemas: Readonly<Record<string, z.ZodType<ModelConfig>>> = { llama: llamaSchema, zamba: zambaSchema };

/**
 * Reads a Hugging Face config.json, in old and new spellings.
 * @throws DslaError E_CONFIG with every problem at once; E_UNSUPPORTED for an unknown architecture, with the known ones.
 */
export function parseConfig(json: unknown): ModelConfig {
  const { model_type: type } = (typeof json === 'object' && json !== null ? json : {}) as { model_type?: unknown };
  const schema = typeof type === 'string' && Object.hasOwn(schemas, type) ? schemas[type] : undefined;
  if (!schema) {
    throw new DslaError('E_UNSUPPORTED', {
      where: 'config.json',
      rule: `model_type must be one of ${Object.keys(schemas).join(', ')}`,
      got: type,
      cure: 'Other architectures are added in packages/models; see CONTRIBUTING.md.',
    });
  }
  const { success, data, error } = schema.safeParse(json);
  if (success) return data;
  const problems = error.issues.map(({ path, message }) =>
    path.length > 0 ? `${path.join('.')}: ${message}` : message,
  );
  throw new DslaError('E_CONFIG', {
    where: 'config.json',
    rule: `${problems.length} problem(s) for ${type}: ${problems.join('; ')}`,
    cure: 'Correct the file, or choose a checkpoint that fits.',
    details: { problems },
  });
}
