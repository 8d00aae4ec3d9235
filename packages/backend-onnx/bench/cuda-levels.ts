import { figures, type Line, labelOf, median, table } from './cuda-lines.js';

// What lines of several runs say together: from where on a level is faster, and what drawing tokens costs.

/** For each call and plan the times over those of softmax attention by length, and where they become equal. */
export function breakEvens(runs: readonly Line[]): string {
  const sound = runs.filter(({ error }) => !error);
  const converted = sound.filter(({ plan }) => plan !== level0);
  const rows = converted.flatMap((first, index) => {
    if (converted.findIndex((run) => alike(run, first) && run.plan === first.plan) < index) return [];
    const points = sound
      .filter((run) => alike(run, first) && run.plan === first.plan)
      .flatMap((run) => {
        const base = sound.find((each) => each.plan === level0 && each.tokens === run.tokens && alike(each, run));
        return base
          ? [{ tokens: run.tokens!, ratio: median(run) / median(base), saved: median(base) - median(run) }]
          : [];
      })
      .sort((a, b) => a.tokens - b.tokens);
    if (points.length < 2) return [];
    const { code, test, batch, layers } = first;
    const ratios = points.map(({ tokens, ratio }) => `${tokens}: ${ratio.toFixed(2)}`).join(', ');
    return [[code, test, batch, layers, labelOf(first), ratios, crossing(points)]];
  });
  return table(['code', 'test', 'rows', 'layers', 'plan', 'time / level 0 by tokens', 'faster from'], rows);
}

const level0 = 'default:0';

/** The same test of the same call. */
function alike(a: Line, b: Line): boolean {
  return (['code', 'command', 'test', 'batch'] as const).every((key) => a[key] === b[key]);
}

interface Point {
  readonly tokens: number;
  /** Milliseconds less than at level 0. */
  readonly saved: number;
}

/** On the line between the last length at which nothing is saved and the next. */
function crossing(points: readonly Point[]): string {
  const last = points.findLastIndex(({ saved }) => saved <= 0);
  const [below, above] = [points[last], points[last + 1]];
  if (!above) return 'none of these';
  if (!below) return 'all of these';
  const tokens = below.tokens + ((above.tokens - below.tokens) * below.saved) / (below.saved - above.saved);
  return `about ${(100 * Math.round(tokens / 100)).toLocaleString('en-US')}`;
}

/** Steps of calls that draw them in several ways. */
export function drawn(all: readonly Line[]): readonly Line[] {
  const others = all.filter(({ drawing = greedy }) => drawing !== greedy);
  return all.filter((run) => others.some((each) => sameStep(each, run)));
}

export function drawings(runs: readonly Line[]): string {
  const head = [
    'code',
    'test',
    'layers',
    'tokens',
    'rows',
    'drawn with',
    'median',
    'sd',
    'n',
    'more than the most likely, ms',
  ];
  const rows = runs.map((run) => {
    const { code, test, layers, tokens, batch, drawing = greedy } = run;
    const base = runs.find((each) => each.drawing === greedy && sameStep(each, run));
    const more = base && drawing !== greedy ? (median(run) - median(base)).toFixed(2) : '-';
    return [code, test, layers, tokens, batch, wordsOf(drawing), ...figures(run), more];
  });
  return table(head, rows);
}

/** How cuda.ts says that rows take their most likely token. */
const greedy = 'greedy';

function sameStep(a: Line, b: Line): boolean {
  return a.plan === b.plan && a.tokens === b.tokens && alike(a, b);
}

function wordsOf(drawing: string): string {
  if (drawing === greedy) return 'the most likely';
  const names = ['temperature', 'k', 'p'];
  return drawing
    .split(':')
    .flatMap((value, at) => (value ? [`${names[at]} ${value}`] : []))
    .join(', ');
}
