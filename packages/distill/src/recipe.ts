import type { AdamWOptions } from './optimizer.js';

/** How one stage is tuned. */
export interface Stage {
  /** 0: the stage is left out. */
  readonly steps: number;
  readonly rate: number;
  /** Share of the steps in which the rate rises. */
  readonly warmUp: number;
  /** Last rate, as a share of `rate`. */
  readonly floor: number;
  /** Windows whose gradients are computed at once, and how often before a step is taken. */
  readonly rows: number;
  readonly accumulate: number;
  /** Largest global norm of the gradients. */
  readonly clip: number;
  readonly adam: AdamWOptions;
}

export interface Recipe {
  /** Layer by layer on the teacher's inputs: y, what its attention adds to the residual, shall be the teacher's. */
  readonly match: Stage & {
    /** Normalised squared error (ours), or KL between the softmaxes of y (arXiv 2506.09316 eq. 9). */
    readonly loss: 'mse' | 'kl';
    /** Weight of the term that keeps the two states apart; 0: none. */
    readonly separation: number;
    /** Least distance of their mean half-lives, in octaves; left out: the published cosine of the gates. */
    readonly octaves?: number;
  };
  /** KL of the whole hybrid's logits from the teacher's. */
  readonly logits: Stage;
  /**
   * chained: each layer on the hybrid of the earlier ones, which stay as they are (the only one whose every prefix was
   * tuned); independent: each layer as the only one; joint: all at once.
   */
  readonly together: 'chained' | 'independent' | 'joint';
  /** Weights to tune, by what follows the mixer's name: `gate`, `mix`, `log_weight`, `feature`, ...; left out: all. */
  readonly train?: readonly string[];
  /** Factors of the rate for weights whose names end so; 1 for others. */
  readonly rates?: Readonly<Record<string, number>>;
  /** Tokens of a window. */
  readonly tokens: number;
  /** Windows on which everything is judged; never trained on. */
  readonly heldOut: number;
  readonly seed: number;
  /** Steps between looks at the held-out windows; the best weights seen are kept. */
  readonly checkEvery: number;
  /** Looks without an improvement after which a stage ends. */
  readonly patience: number;
  /** Steps between checkpoints. */
  readonly saveEvery: number;
}

const adam: AdamWOptions = { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, decay: 0.01 };
const stage: Stage = { steps: 250, rate: 1e-2, warmUp: 0.05, floor: 0.05, rows: 4, accumulate: 1, clip: 1, adam };

/** For foldable and other `dual` mixers: gates, mix, feature maps and weight of the state; some 4 M tokens a layer. */
export const foldableRecipe: Recipe = {
  match: { ...stage, loss: 'mse', separation: 0.01, octaves: 3 },
  logits: { ...stage, rate: 2e-3 },
  together: 'chained',
  // One number a head that has far to go: the best log weight of a layer lies anywhere from -9 to -3.
  // A change of o acts on every channel at once and wants small steps.
  rates: { log_weight: 10, mix: 10, 'gate.bias': 10, 'output.up': 0.1, 'output.down': 0.1 },
  tokens: 1024,
  heldOut: 8,
  seed: 0,
  checkEvery: 25,
  patience: 8, // a cosine gains most at its end: stop only what is lost
  saveEvery: 50,
};

/**
 * As the paper describes it: KL of the layer's output plus the cosine of its gates, AdamW with decay 0.01, 5 % warm-up to 1e-4,
 * cosine to 5e-5; q, k, v, o, gates and mix. The cosine's weight is not given; 0.001 is the code's default.
 */
export const publishedRecipe: Recipe = {
  ...foldableRecipe,
  rates: {},
  match: { ...stage, rate: 1e-4, floor: 0.5, loss: 'kl', separation: 0.001 },
  logits: { ...stage, steps: 0 },
};
