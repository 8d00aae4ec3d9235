import { DslaError } from '@dsla/spec';
import { type Checkpoint, type Conversion, mixers as forms, type Mixer, type Tuned, untuned } from '../checkpoint.js';
import type { Family } from '../report/report.js';

/** A checkpoint and what it is turned into. */
export interface Entry {
  readonly id: string;
  readonly family: Family;
  readonly checkpoint: Checkpoint;
  readonly conversion: Conversion;
}

export interface LineUpOptions {
  /** Levels of the foldable form and of the sliding window. */
  readonly levels: readonly number[];
  readonly mixers: readonly Mixer[];
  /** Trained mixers; layers beyond their level are at their start values. */
  readonly tuned?: Tuned | undefined;
}

/**
 * Who takes part: the softmax model first, then its conversions, Zamba last. The single state and the published form, which
 * only answer whether two states and our form pay, take part at one level. Beside trained mixers the same before training and
 * the window take part at fewer levels.
 */
export function lineUp(llama: Checkpoint, zamba: Checkpoint | undefined, options: LineUpOptions): Entry[] {
  const { levels, mixers, tuned } = options;
  const { convertible, kept } = llama;
  const half = closest(levels, convertible / 2);
  const one = kept > 0 ? closest(levels, convertible - kept) : half; // all but the recall layers, where known
  const all = levels.at(-1)!;
  const entry = (family: Family, conversion: Conversion): Entry => {
    return { id: `${family}-${conversion.level}`, family, checkpoint: llama, conversion };
  };
  const trained = tuned && (Object.hasOwn(forms, tuned.mixer) ? (tuned.mixer as Mixer) : 'foldable');
  const converted = mixers.flatMap((mixer): Entry[] => {
    if (mixer === trained) {
      const own = levels.map((level) => ({ ...tuned!, level }));
      const before = [...new Set([one, all])].map((level) => {
        return entry('untuned', { ...untuned(mixer, level), mixer: 'untuned' }); // a name of its own: weights are shared by name
      });
      return [...own.map((conversion) => entry(mixer, conversion)), ...before];
    }
    const some = mixer === 'window' && trained ? [...new Set([half, one, all])] : levels;
    const own = mixer === 'foldable' || mixer === 'window' ? some : [one];
    return own.map((level) => entry(mixer, untuned(mixer, level)));
  });
  const unconverted = untuned('foldable', 0);
  return [
    { id: 'softmax', family: 'softmax', checkpoint: llama, conversion: unconverted },
    ...converted,
    ...(zamba ? [{ id: 'zamba', family: 'zamba', checkpoint: zamba, conversion: unconverted } as const] : []),
  ];
}

/** A quarter, half, three quarters and all of the layers, and all but those that carry recall, if that is known. */
export function defaultLevels({ convertible, kept }: Checkpoint): number[] {
  const levels = [0.25, 0.5, 0.75, 1].map((share) => Math.round(share * convertible));
  if (kept > 0) levels.push(convertible - kept);
  return [...new Set(levels)].filter((level) => level > 0).sort((a, b) => a - b);
}

/** @throws DslaError E_INPUT for levels out of range */
export function checkLevels(levels: readonly number[], { name, convertible }: Checkpoint): void {
  const wrong = levels.find((level) => level < 1 || level > convertible);
  if (wrong === undefined) return;
  throw new DslaError('E_INPUT', {
    where: '--levels',
    rule: `levels must be in 1..${convertible} for ${name}`,
    got: wrong,
    cure: 'Level 0, the softmax model, always takes part.',
  });
}

function closest(levels: readonly number[], wanted: number): number {
  return [...levels].sort((a, b) => Math.abs(a - wanted) - Math.abs(b - wanted))[0]!;
}
