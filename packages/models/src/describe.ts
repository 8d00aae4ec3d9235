import { DslaError, inferWidths, type LayerGraph } from '@dsla/spec';
import type { ModelConfig } from './config.js';
import { llama } from './llama.js';
import type { Mixers } from './mixers.js';
import type { ModelDescription } from './model.js';
import { zamba } from './zamba.js';

export interface DescribeOptions {
  /** Mixers that plans may name, besides 'default'. A model whose layers cannot be exchanged takes none. */
  readonly mixers?: Mixers;
}

/**
 * The model as tapes.
 * @throws DslaError E_INPUT or E_UNSUPPORTED when a mixer's options break a rule or do not fit the model.
 */
export function describe(config: ModelConfig, { mixers = {} }: DescribeOptions = {}): ModelDescription {
  for (const mixer of Object.keys(mixers)) {
    if (mixer === 'default' || !/^[a-z][\w-]*$/i.test(mixer)) {
      const rule = "a mixer's name must be letters, digits, - and _, and not 'default'";
      throw new DslaError('E_INPUT', { where: 'describe', rule, got: mixer });
    }
  }
  const description = config.architecture === 'llama' ? llama(config, mixers) : zamba(config);
  for (const graph of tapesOf(description)) inferWidths(graph, (name) => description.weights[name]!.shape);
  return description;
}

/** Every tape of a description. */
export function tapesOf({ segments, head, headAll, folds }: ModelDescription): readonly LayerGraph[] {
  return [
    ...segments.flatMap(({ versions }) => Object.values(versions)),
    head,
    headAll,
    ...Object.values(folds).flat(),
  ];
}
