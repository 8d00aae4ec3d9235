import type { Ref } from '../emit.js';

// What dual linear attention computes with in blocks of tokens. In the comments: St states, g kv heads, G query heads a kv head,
// n blocks of C tokens, F features, V value columns, D decays a token: F or 1.

/** Tokens that enter the states. */
export interface Entering {
  /** [g, n, C, F]; 0 where no token enters */
  readonly k: Ref;
  /** [g, n, C, V] */
  readonly v: Ref;
  /** log decays [g, n, C, St, D], in float where D is 1, else of the type; all <= 0, and 0 where no token enters */
  readonly decays: Ref;
}

export interface Streams extends Entering {
  /** [g, n, G, C, F] */
  readonly q: Ref;
  /** log(gamma_i * scale) in float, [1 or g, 1, G, 1, St] */
  readonly logGamma: Ref;
}

export interface Sizes {
  readonly states: number;
  readonly kvHeads: number;
  readonly group: number;
  readonly features: number;
  readonly columns: number;
  readonly gate: 'scalar' | 'vector';
  /** Type of q, k, v and of all products. */
  readonly type: 'float' | 'float16';
  /** What every weight is multiplied with; the gammas hold it. */
  readonly scale: number;
}

export interface StatePart {
  /** In float, [St, g, F, V] */
  readonly past: Ref;
  next(value: Ref): void;
}
