import type { LevelResult, Recipe } from '@dsla/distill';
import type { Summary } from '@dsla/eval';
import type { MixerOptions } from '@dsla/models';
import type { Contender, Report } from '../src/report/report.js';

// What docs/results/conversion.json holds.

/** Written by packages/distill/bench/chain-gpu.ts. */
export interface ChainResult {
  readonly recipe: Recipe;
  readonly device: string;
  readonly host: { readonly cpu: string; readonly cores: number; readonly node: string; readonly gpu?: string };
  readonly seconds: number;
  readonly tokens: number;
  readonly tokensPerSecond: number;
  readonly gpuMiB: number;
  readonly residentBytes: number;
  readonly levels: readonly LevelResult[];
}

export interface Choice extends Summary {
  readonly contender: string;
  readonly task: string;
}

/** With the bytes of one sequence's state in a converted layer (softmax: at 4,096 tokens). */
type Judged = Pick<Contender, 'id' | 'family' | 'level' | 'tuned'> & { readonly bytes?: number };

export type Quality = { readonly contenders: Judged[] } & {
  readonly [K in 'bitsPerByte' | 'excess' | 'recall']: Report[K][number][];
};

export interface Judgement {
  readonly quality: Quality;
  readonly choice: Choice[];
}

/** A conversion that was judged and not kept. */
export interface BaselineChain extends Omit<ChainResult, 'losses'> {
  readonly name: string;
  readonly mixer: MixerOptions;
  /** How far it came. */
  readonly level: number;
  /** Of its weights. */
  readonly sha256: string;
}

export interface Measured extends Judgement {
  readonly chain: ChainResult;
  readonly measured: {
    readonly machine: Report['machine'];
    readonly backend: string;
    readonly text: Report['text'];
    readonly windows: number;
    readonly recallWindows: number;
  };
  readonly baselines?: Quality & { readonly chains: readonly BaselineChain[] };
  readonly beside?: Quality & { readonly windows: number };
}
