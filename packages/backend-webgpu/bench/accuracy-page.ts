import { bullets, table } from './markdown.js';

// Lines of accuracy.bench.ts, conformance.bench.ts and accuracy-peers.py, and of accuracy-roundings.py, as parts of a page.

/** A token at which another id is first: how far apart the reference has its first two logits, and the first of them. */
interface Other {
  readonly token: number;
  readonly margin: number;
  readonly logit?: number;
}
export interface Correct {
  readonly code: string;
  readonly test: string;
  readonly computeType?: string;
  readonly checks?: string;
  readonly passed?: number;
  readonly failed?: readonly { readonly name: string; readonly message: string }[];
  readonly type?: string;
  readonly model?: string;
  readonly tokens?: number;
  readonly mixer?: string;
  readonly rms?: number | Readonly<Record<string, number>> | readonly number[];
  /** A prompt in one step, or a token a step. */
  readonly way?: string;
  /** RMS of the differences of logits from the reference's. */
  readonly error?: number;
  readonly others?: readonly Other[];
  readonly greedy?: string;
}

export const largest = (rms: Correct['rms']): number =>
  typeof rms === 'number' ? rms : Math.max(...Object.values(rms ?? {}));

/** Of the first so many tokens, how many have another id first. */
export const otherwise =
  (most: number) =>
  ({ others }: Correct): number =>
    others!.filter(({ token }) => token < most).length;

/** In steps from one number of float16 to the next, which has 10 bits after the first, at the size of the logits. */
const stepsOf = ({ margin, logit }: Other): number => margin / 2 ** (Math.floor(Math.log2(Math.abs(logit!))) - 10);

/** How many tokens have another id first though float16 tells the reference's first two apart. */
export const unlike = ({ others }: Correct): number => others!.filter((other) => stepsOf(other) >= 1).length;

/** Logits of many tokens beside the reference's: ours, ours before, and those of others. */
export function references(lines: readonly Correct[]): string {
  return table(
    [
      'checkpoint',
      'by',
      '',
      'RMS ratio',
      'RMS error',
      'same first token',
      'of',
      'elsewhere apart by at most',
      'in steps',
    ],
    lines
      .filter(({ others }) => others)
      .map(({ code, test, model, type, way, tokens, rms, error, others }) => [
        model,
        test === 'reference' ? `${code}, ${type}` : `${test} ${type}`,
        way,
        largest(rms).toExponential(1),
        error!.toExponential(1),
        (tokens! - others!.length).toLocaleString('en-US'),
        tokens!.toLocaleString('en-US'),
        others!.length === 0 ? '' : Math.max(...others!.map(({ margin }) => margin)).toFixed(4),
        others!.length === 0 ? '' : Math.max(...others!.map(stepsOf)).toFixed(2),
      ]),
  );
}

/** Roundings at some sites: those of a way to compute, or one alone. */
interface Roundings {
  readonly test: 'roundings';
  readonly way: string;
  readonly sites: readonly string[];
  readonly tokens: number;
  /** Of the differences of logits, beside the logits' own. */
  readonly rms: number;
  readonly error: number;
  readonly others: readonly { readonly token: number; readonly margin: number }[];
}
/** The same roundings drawn anew: of the first prompt, draws in which all tokens agree, and those that agree least surely. */
interface Draws {
  readonly test: 'draws';
  readonly way: string;
  readonly tokens: number;
  readonly draws: number;
  readonly agree: number;
  readonly near: readonly { readonly token: number; readonly margin: number; readonly spread: number }[];
}

/** What each rounding has of the squared error of all, by way, and how sure the agreement of the first prompt is. */
export function roundings(lines: readonly (Roundings | Draws)[]): string {
  const of = lines.filter((line) => line.test === 'roundings');
  const [alone, ways] = [of.filter(({ way }) => way === 'alone'), of.filter(({ way }) => way !== 'alone')];
  const row = (label: string, value: (line: Roundings) => string) => [label, ...ways.map(value)];
  const shares = table(
    ['rounded', ...ways.map(({ way }) => way)],
    [
      ...alone.map(({ sites: [site], error }) =>
        row(site!, (way) => (way.sites.includes(site!) ? `${((100 * error ** 2) / way.error ** 2).toFixed(1)} %` : '')),
      ),
      row('all: RMS ratio', ({ rms }) => rms.toExponential(1)),
      row('all: other first tokens', ({ others, tokens }) => `${others.length} of ${tokens.toLocaleString('en-US')}`),
    ],
  );
  const draws = lines.filter((line) => line.test === 'draws');
  const told = draws.map(({ way, tokens, draws, agree, near }) => {
    const least = near.map(
      ({ token, margin, spread }) =>
        `token ${token}, ${margin.toFixed(4)} apart, standard deviation ${spread.toFixed(4)}`,
    );
    return `${way}: all of the first ${tokens.toLocaleString('en-US')} agree in ${agree} of ${draws} draws; least surely ${least.join('; ')}`;
  });
  return `${shares}\n\n${bullets(told)}`;
}
