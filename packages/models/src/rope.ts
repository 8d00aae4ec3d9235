import type { Rope } from '@dsla/spec';

/** How the frequencies were stretched for longer contexts. */
export type RopeScaling =
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      /** Context before stretching, in tokens. */
      readonly original: number;
    };

/**
 * Frequencies theta^(-2i/hd) for the pairs (i, i + hd/2) of a head, in radians a token, in float64. Scaling acts at every
 * position, also within the original context (Llama 3.1, section "rope_scaling" of its configuration).
 */
export function rope(headDim: number, theta: number, scaling?: RopeScaling): Rope {
  const frequencies = Array.from({ length: headDim / 2 }, (_, i) => scale(theta ** ((-2 * i) / headDim), scaling));
  return { frequencies, rotaryDim: headDim };
}

function scale(frequency: number, scaling: RopeScaling | undefined): number {
  if (!scaling) return frequency;
  if (scaling.type === 'linear') return frequency / scaling.factor;
  const { factor, lowFreqFactor: low, highFreqFactor: high, original } = scaling;
  const turns = (original * frequency) / (2 * Math.PI); // full turns within the original context
  if (turns > high) return frequency;
  if (turns < low) return frequency / factor;
  const smooth = (turns - low) / (high - low);
  return ((1 - smooth) * frequency) / factor + smooth * frequency;
}
