import { bullets, table } from './markdown.js';

// Lines of accuracy-roundings.py as a part of a page.

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
