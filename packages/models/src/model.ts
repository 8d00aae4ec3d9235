import type { LayerGraph, Weight } from '@dsla/spec';

/** A model as data: what the runtime needs to run it, on any backend, without knowing its architecture. */
export interface ModelDescription {
  readonly architecture: string;
  readonly vocabulary: number;
  /** Longest sequence the model was trained for, in tokens. */
  readonly context: number;
  /** Number of layers whose mixer can be exchanged, bottom to top. */
  readonly convertible: number;
  /** Mixers other than the model's own, by the names given when it was described. */
  readonly mixers: readonly string[];
  /** In order of execution. The first reads token ids, the last writes `x`. */
  readonly segments: readonly Segment[];
  /** `x` to `logits` of every row's last token, [rows, vocabulary]. */
  readonly head: LayerGraph;
  /** `x` to `logits` of every token, [tokens, vocabulary]. */
  readonly headAll: LayerGraph;
  /** By mixer and convertible layer: the tape that rebuilds its state from the layer's KV cache. Absent: cannot be folded. */
  readonly folds: Readonly<Record<string, readonly LayerGraph[]>>;
  /** Where every weight of the tapes lies in a checkpoint. */
  readonly weights: Readonly<Record<Weight, WeightRef>>;
}

/**
 * A stretch of the forward pass. Segments whose versions differ by mixer are cut so that projections are run once for all
 * rows of a batch and only the mechanism itself by groups of rows.
 */
export interface Segment {
  readonly name: string;
  /** Index of the convertible layer it belongs to, if its versions differ by mixer. */
  readonly layer?: number;
  /** `default` always exists; a row whose plan names a mixer uses that version where there is one. */
  readonly versions: { readonly default: LayerGraph } & Readonly<Record<string, LayerGraph>>;
}

/** Part of a checkpoint tensor. */
export interface WeightRef {
  /** Names to look for, first found wins: checkpoints of different ages spell differently. */
  readonly tensors: readonly string[];
  /** Shape after selection. Leading axes of 1 do not count. */
  readonly shape: readonly number[];
  /** Shape in the checkpoint, where it differs. */
  readonly stored?: readonly number[];
  /** Takes element `index` of the first axis (which disappears). */
  readonly index?: number;
  /** Takes rows start, start + step, ... of the first axis. */
  readonly rows?: { readonly start: number; readonly step: number };
  /** The mixer that it belongs to: a conversion file is asked for it before the model's own checkpoint. */
  readonly mixer?: string;
  /** Values of a weight that no base checkpoint holds: the untuned start of a conversion, used where `tensors` are absent. */
  readonly initial?: () => Float32Array;
}

/** Mixer of every convertible layer, bottom to top: 'default' or the name of a mixer. */
export type Plan = readonly string[];
