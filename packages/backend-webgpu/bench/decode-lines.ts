import type { Statistics } from './synthetic.js';

// Lines of decode.bench.ts and of peers.py, as pages read them.

export interface Line {
  readonly shape: string;
  readonly mixer: string;
  readonly level: string | number;
  readonly weights?: string;
  readonly tokens: number;
  readonly batch: number;
  readonly bytes?: { readonly weights: number; readonly states: number };
  readonly milliseconds: Statistics;
  readonly host?: Statistics;
  readonly drawn?: Statistics;
  readonly gpu?: DeviceTimes;
}

/** Of a step's dispatches, by the device's clock. */
export interface DeviceTimes {
  readonly milliseconds: Statistics;
  readonly dispatches: number;
  /** By how much a step is shorter without a kernel, a dispatch of it. */
  readonly kernels: readonly {
    readonly kernel: string;
    readonly grid: readonly number[];
    readonly count: number;
    readonly microseconds: number;
  }[];
}

export interface Peer {
  readonly peer: string;
  readonly tokens: number;
  readonly batch: number;
  readonly milliseconds: Statistics;
  readonly gigabytesPerSecond?: number;
}

/** Gigabytes a second at which PyTorch copied. */
export function copyRate(peers: readonly Peer[]): number {
  return peers.find(({ peer }) => peer === 'copy')!.gigabytesPerSecond!;
}

// Llama2-7B, for lines without bytes: of its products and of a token of its cache, in float16.
const products = 2 * (32 * (4 * 4096 ** 2 + 3 * 4096 * 11008) + 32000 * 4096);
const perToken = 2 * 32 * 2 * 4096;

/** Milliseconds in which the bytes of a step are read once at so many gigabytes a second. */
export function floor({ tokens, batch, bytes }: Line, rate: number): number {
  return (bytes ? bytes.weights + bytes.states : products + batch * tokens * perToken) / rate / 1e6;
}

export function nameOf({ shape, mixer, level, weights = 'f16' }: Line): string {
  return [shape, weights, ...(mixer === 'default' ? [] : [`${mixer} in ${level} layers`])].join(' ');
}

export const fixed = (of: Statistics | undefined, digits = 2): string => of?.median.toFixed(digits) ?? '–';
