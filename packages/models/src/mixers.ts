import type { LayerGraph } from '@dsla/spec';
import { type Block, softmax } from './block.js';
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

/** Versions of a layer's segments for one mixer; where one is absent the layer's own serves it too. */
export interface MixerTapes {
  readonly attention: LayerGraph;
  readonly project?: LayerGraph;
  readonly output?: LayerGraph;
  /** The layer's own `project` must write a, the normed input. */
  readonly needsInput?: boolean;
  /** Rebuilds the mixer's state from the layer's KV cache. */
  readonly fold?: LayerGraph;
}

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
