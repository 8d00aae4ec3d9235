import type { Ref } from '../emit.js';

// What dual linear attention computes with in blocks of tokens. In the comments: St states, g kv heads, G query heads a kv head,
// n blocks of C tokens, F features, V value columns, D decays a token: F or 1.

export interface Streams {
  /** [g, n, G, C, F] */
  readonly q: Ref;
  /** [g, n, C, F]; 0 where no token enters */
  readonly k: Ref;
  /** [g, n, C, V] */
  readonly v: Ref;
  /** log decays [g, n, C, St, D], all <= 0; 0 where no token enters */
  readonly decays: Ref;
  /** [1 or g, 1, 1 or G, 1, St, 1] */
  readonly logGamma: Ref;
}

export interface Sizes {
  readonly states: number;
  readonly kvHeads: number;
  readonly group: number;
  readonly features: number;
  readonly columns: number;
}
