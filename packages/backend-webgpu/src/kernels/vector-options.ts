import type { NodeOf } from '@dsla/spec';
import type { Shape } from './elementwise.js';
import type { Domain } from './kernel.js';
import type { Format } from './quantise.js';

type Activation = NodeOf<'activate'>['fn'];

/**
 * How the work is cut: `items` at a time; `rows` outputs a team of `team` subgroups of `lanes`, which share the width of x.
 */
export interface VectorShape {
  readonly items: number;
  readonly rows: number;
  readonly team: number;
  readonly lanes: number;
}

/** A product of the kernel: its output, and whether it has a bias. */
export interface VectorPart {
  readonly y: Shape;
  readonly bias: boolean;
  /** y = f(x W^T) * (x U^T): the gate of a feed-forward block. */
  readonly gate?: Activation | undefined;
  /** y = z + x W^T with another value z, or y += x W^T. */
  readonly add?: Shape | 'own' | undefined;
}

export interface VectorOptions {
  readonly domain: Domain;
  readonly x: Shape;
  /** Of the matrices: the type of x, or quantised. */
  readonly format: Format;
  readonly parts: readonly VectorPart[];
  readonly shape: VectorShape;
  /** Takes the RMS norm of x instead of x. */
  readonly eps?: number | undefined;
}
