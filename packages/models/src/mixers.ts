import { type Block, type MixerTapes, softmax } from './block.js';
import { type DualOptions, dual } from './dual.js';
import type { Names } from './names.js';
import { type PublishedOptions, published } from './published.js';

/** Sliding-window softmax attention with attention sinks: needs no training, the baseline of every conversion. */
export interface WindowOptions {
  readonly kind: 'window';
  /** Tokens that a query sees, its own included. */
  readonly size: number;
  /** First tokens of the sequence, seen always. */
  readonly sinks: number;
}

export type MixerOptions = WindowOptions | DualOptions | PublishedOptions;
/** By the names that plans use. */
export type Mixers = Readonly<Record<string, MixerOptions>>;

/** Tapes of the mixer `mixer` in a layer. Its states and tensors are called `layers.<layer>.<mixer>...`. */
export function mixerTapes(mixer: string, options: MixerOptions, block: Block, names: Names): MixerTapes {
  switch (options.kind) {
    case 'dual':
      return dual(mixer, options, block, names);
    case 'published':
      return published(mixer, options, block, names);
    case 'window': {
      const { size, sinks } = options;
      const state = `layers.${block.layer}.${mixer}`;
      return { attention: softmax(`layers.${block.layer}.attention ${mixer}`, block, { size, sinks }, state) };
    }
  }
}
