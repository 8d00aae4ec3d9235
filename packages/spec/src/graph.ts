import type { StateSpec } from './state.js';

// A model is data: per segment a straight line of nodes, a *tape*. No loops, no branches, no shapes beyond widths.
// In the comments: T tokens of one row, N tokens of the whole step (rows end to end), hd head width.

/** Index of an earlier node in the same tape. */
export type Value = number;
/** Logical name of a weight; `models` maps it to tensors of a checkpoint. Equal names share memory on a device. */
export type Weight = string;

/** Rotary position embedding on pairs (i, i + rotaryDim/2), the half rotation of Llama. Angle = position * frequency[i]. */
export interface Rope {
  /** rotaryDim / 2 angular frequencies in radians a token, computed in float64 (llama3 scaling already applied). */
  readonly frequencies: readonly number[];
  /** Number of leading features of a head that rotate; the rest pass. */
  readonly rotaryDim: number;
}

/**
 * Everything that decides what a dual-linear-attention state holds, shared by the node that runs the layer and the node
 * that rebuilds the state from a KV cache. Indices: i state, g kv head, c key channel.
 */
export interface DualForm {
  /** Number of states, 1 (gated linear attention) or more; 2 is DSLA: far (0) and near (1). */
  readonly states: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** One decay a kv head, or one a key channel (`vector` requires that no feature map is set). */
  readonly gate: 'scalar' | 'vector';
  /** log decay = logSigmoid(gate logit) / temperature; 16 in the paper's code. */
  readonly temperature: number;
  /** phi(x) = [exp(Wx - c), exp(-Wx - c)], c = max |Wx| over the F rows of the head; absent: phi(x) = x. */
  readonly featureMap?: {
    readonly kind: 'exp';
    /** [heads, F, headDim] */
    readonly query: Weight;
    /** [kvHeads, F, headDim] */
    readonly key: Weight;
  };
  /** Divide by the decayed sum of phi(q).phi(k); the state carries one more column for it. Requires a feature map. */
  readonly normaliser: boolean;
  /** Rotation of q and k; used by the exact part, and by the state where `ropeInState`. */
  readonly rope?: Rope;
  readonly ropeInState: boolean;
  /**
   * Exact softmax over the last `window` tokens (the query's own included) and the first `sinks`, joined with the states
   * under one normaliser; a token enters the states when it leaves the window. Requires `normaliser`.
   */
  readonly exact?: {
    readonly window: number;
    readonly sinks: number;
    /** [heads]: natural log of the states' weight against the exact part. exp(-1e4) is 0: the plain window. */
    readonly logWeight: Weight;
  };
}

export type Node =
  /** A named value of the step, [N, width]. */
  | { readonly op: 'input'; readonly name: string; readonly width: number }
  /** Rows of table [vocabulary, width] by token id: [N, width]. */
  | { readonly op: 'embed'; readonly table: Weight }
  /** x W^T + b with W [out, in], b [out]. */
  | { readonly op: 'linear'; readonly x: Value; readonly weight: Weight; readonly bias?: Weight }
  /** w * x / sqrt(mean(x^2) + eps) over the last axis. */
  | { readonly op: 'rmsNorm'; readonly x: Value; readonly weight: Weight; readonly eps: number }
  | { readonly op: 'add' | 'mul'; readonly a: Value; readonly b: Value }
  /** Features of a, then features of b. */
  | { readonly op: 'concat'; readonly a: Value; readonly b: Value }
  /** Features from (inclusive) to (exclusive). */
  | { readonly op: 'slice'; readonly x: Value; readonly from: number; readonly to: number }
  /** gelu is the exact one (erf); softplus(x) = x above 20. */
  | { readonly op: 'activate'; readonly x: Value; readonly fn: 'silu' | 'gelu' | 'softplus' | 'logSigmoid' }
  /**
   * Causal softmax attention. q [N, heads*hd], k and v [N, kvHeads*hd] before rotation; query head h reads kv head
   * floor(h * kvHeads / heads). State kind 'kv' holds rotated keys. With `window`, query t sees the tokens j <= t with
   * j < sinks or j > t - window, at their absolute positions, and the state is a ring (see kvState).
   */
  | {
      readonly op: 'softmaxAttention';
      readonly q: Value;
      readonly k: Value;
      readonly v: Value;
      readonly state: string;
      readonly heads: number;
      readonly kvHeads: number;
      readonly headDim: number;
      readonly scale: number;
      readonly rope?: Rope;
      readonly window?: { readonly size: number; readonly sinks: number };
    }
  /**
   * Gated linear attention with one or more states (DSLA, arXiv 2506.09316 eq. 4-5) and, where `form.exact` is set, an
   * exact window. Per state i and kv head g, with a = logSigmoid(gates) / temperature:
   *   S_i <- exp(a_i) S_i + phi(k) v^T      (read after the write; a token's own contribution is not decayed)
   *   o = scale * sum_i gamma_i phi(q)^T S_i                                    without normaliser
   *   o = sum_i gamma_i phi(q)^T S_i / sum_i gamma_i phi(q)^T z_i               with normaliser (scale cancels)
   *   o = (sum_E e^{s-m} v + c sum_i gamma_i phi(q)^T S_i) / (sum_E e^{s-m} + c sum_i gamma_i phi(q)^T z_i)   with exact,
   * s = scale * rope(q).rope(k) over the exact set E, m = max s, c = exp(logWeight), gamma = softmax(mix).
   * With `exact`, token j >= sinks enters the states, with its own gate, when query j + window is read.
   */
  | {
      readonly op: 'dualLinearAttention';
      readonly q: Value;
      readonly k: Value;
      readonly v: Value;
      /** Gate logits [N, states*kvHeads] (scalar) or [N, states*kvHeads*headDim] (vector), state-major. */
      readonly gates: Value;
      /** [1 | heads, states]: logits of the mix over the states. */
      readonly mix: Weight;
      readonly state: string;
      readonly heads: number;
      readonly scale: number;
      readonly form: DualForm;
      /** RMS norm of every head's output, weight [headDim]. */
      readonly outputNorm?: { readonly weight: Weight; readonly eps: number };
    }
  /** Depthwise causal convolution: y_t = b + sum_j w_j x_{t-K+1+j}; weight [channels, 1, K], last tap = current token. */
  | {
      readonly op: 'causalConv';
      readonly x: Value;
      readonly weight: Weight;
      readonly bias?: Weight;
      readonly state: string;
    }
  /**
   * Mamba-1 scan: S <- exp(dt A) S + dt B x, y = C.S + D x, with A = -exp(logA). x, dt [N, channels]; b, c [N, heads*n];
   * logA [heads, channels/heads, n]; d [heads, channels/heads].
   */
  | {
      readonly op: 'selectiveScan';
      readonly x: Value;
      readonly dt: Value;
      readonly b: Value;
      readonly c: Value;
      readonly logA: Weight;
      readonly d: Weight;
      readonly state: string;
      readonly heads: number;
    }
  /**
   * Rebuilds the dual state of every row from its KV cache of `past` tokens, exactly as a prefill of the dual layer would
   * have left it. Rows have count 0 in such a step. Gates come from what a cache holds: logits = W u + b, where u is the
   * cached value, or the cached key with its rotation undone, [kvHeads*hd].
   */
  | {
      readonly op: 'foldState';
      readonly from: string;
      readonly to: string;
      readonly gateSource: 'key' | 'value';
      readonly gateWeight: Weight;
      readonly gateBias?: Weight;
      readonly form: DualForm;
    }
  /** The last token of every row: [rows, width]. */
  | { readonly op: 'lastToken'; readonly x: Value }
  /** A third party's mechanism: lowered natively where `kind` is known, otherwise `body` is inlined (see inlineCalls). */
  | { readonly op: 'call'; readonly kind: string; readonly inputs: readonly Value[]; readonly body: LayerGraph }
  /** Writes a named value of the step. */
  | { readonly op: 'output'; readonly name: string; readonly x: Value };

export type Op = Node['op'];
export type NodeOf<K extends Op> = Extract<Node, { op: K }>;

/** A tape: frozen data. */
export interface LayerGraph {
  readonly name: string;
  readonly nodes: readonly Node[];
  /** The states that the nodes name. */
  readonly states: readonly StateSpec[];
}
