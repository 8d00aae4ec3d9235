import type { TopLevelSpec } from 'vega-lite';
import { formatTokens } from '../ui/units.js';
import { familyTitles, type Point } from './points.js';
import type { Family } from './report.js';

export interface Axis {
  readonly title: string;
  readonly scale: 'linear' | 'log';
  /** d3 format of the labels. */
  readonly format: string;
  /** What lies outside is cut off: a value or an interval far out would flatten all others. */
  readonly domain?: readonly [low: number, high: number];
}

// Mid tones that read on white and on black.
const baseline = '#8c8c8c';
const familyColors: Readonly<Record<Family, string>> = {
  softmax: baseline,
  zamba: '#a46cc7',
  foldable: '#2f8fd0',
  untuned: '#7fb2c9',
  window: '#e08a2b',
  single: '#3aa76d',
  published: '#d65151',
};
const levelColors = ['#2f8fd0', '#3aa76d', '#e08a2b', '#d65151', '#c65f9e', '#8a9a2f', '#7a6ff0', '#2aa6a6'];

/** A panel for every length: the value against the number of converted layers, a line for every family. */
export async function byLevel(points: readonly Point[], axis: Axis): Promise<string> {
  const families = [...new Set(points.map(({ contender }) => contender.family))];
  const converted = families.filter((family) => family !== 'softmax' && family !== 'zamba');
  const rows = points.flatMap((point) => {
    const { family } = point.contender;
    // Level 0 of every family is the softmax model; Zamba has no levels and is drawn as a rule.
    const shown: readonly Family[] = family === 'softmax' && converted.length > 0 ? converted : [family];
    return shown.map((series) => row(point, formatTokens(point.length), familyTitles[series]));
  });
  const titles = families.filter((family) => family !== 'softmax' || converted.length === 0);
  return render({
    data: { values: rows },
    facet: { column: { field: 'panel', type: 'nominal', title: 'length in tokens', sort: panelOrder(rows) } },
    spec: {
      width: panelWidth(rows),
      height: 190,
      encoding: {
        y: valueAxis(axis),
        color: colors(
          titles.map((family) => familyTitles[family]),
          titles.map((family) => familyColors[family]),
        ),
      },
      layer: [
        {
          transform: [{ filter: 'datum.family !== "zamba"' }],
          encoding: {
            x: {
              field: 'level',
              type: 'quantitative',
              title: 'converted layers',
              scale: { padding: 6, nice: false },
              axis: { tickMinStep: 1, format: 'd' },
            },
          },
          layer: [
            // An untuned conversion starts as the window: dashed, so that both can be seen.
            {
              mark: { type: 'line', strokeWidth: 1.5, clip: axis.domain !== undefined },
              encoding: dashed(`datum.series === "${familyTitles.window}"`),
            },
            { mark: { type: 'point', filled: true, size: 30, opacity: 1, clip: axis.domain !== undefined } },
            interval(axis),
          ],
        },
        {
          transform: [{ filter: 'datum.family === "zamba"' }],
          mark: { type: 'rule', strokeWidth: 1.5, strokeDash: [6, 3] },
        },
      ],
    },
  });
}

/** A panel for every family: the value against the length, a line for every level, softmax and Zamba in each. */
export async function byLength(points: readonly Point[], axis: Axis, xTitle: string): Promise<string> {
  const converted = [...new Set(points.map(({ contender }) => contender.family))].filter(
    (family) => family !== 'softmax' && family !== 'zamba',
  );
  const panels: readonly Family[] = converted.length > 0 ? converted : ['softmax'];
  const rows = points.flatMap((point) => {
    const { family } = point.contender;
    const isBaseline = family === 'softmax' || family === 'zamba';
    return (isBaseline ? panels : [family]).map((panel) => row(point, familyTitles[panel], seriesOf(point)));
  });
  const levels = [...new Set(rows.filter(({ level }) => level > 0).map(({ level }) => level))].sort((a, b) => a - b);
  const series = [...new Set(rows.map(({ series }) => series))];
  const ordered = [
    ...['softmax', 'Zamba'].filter((title) => series.includes(title)),
    ...levels.map((level) => `level ${level}`),
  ];
  const palette = ordered.map((title) =>
    title === 'softmax'
      ? baseline
      : title === 'Zamba'
        ? familyColors.zamba
        : levelColors[levels.indexOf(Number(title.slice('level '.length))) % levelColors.length]!,
  );
  return render({
    data: { values: rows },
    facet: { column: { field: 'panel', type: 'nominal', title: null, sort: panelOrder(rows) } },
    spec: {
      width: panelWidth(rows),
      height: 190,
      encoding: {
        x: {
          field: 'length',
          type: 'quantitative',
          title: xTitle,
          scale: { type: 'log', base: 2, nice: false, padding: 6 },
          axis: { values: [...new Set(points.map(({ length }) => length))], labelExpr: tokenLabel, labelOverlap: true },
        },
        y: valueAxis(axis),
        color: colors(ordered, palette),
      },
      layer: [
        {
          mark: { type: 'line', strokeWidth: 1.5, clip: axis.domain !== undefined },
          encoding: dashed('datum.family === "zamba"'),
        },
        { mark: { type: 'point', filled: true, size: 26, opacity: 1, clip: axis.domain !== undefined } },
        interval(axis),
      ],
    },
  });
}

const tokenLabel =
  'datum.value >= 1024 && datum.value % 1024 === 0 ? datum.value / 1024 + "k" : format(datum.value, "d")';

interface Row {
  readonly panel: string;
  readonly series: string;
  readonly family: Family;
  readonly level: number;
  readonly length: number;
  readonly y: number;
  readonly low: number | null;
  readonly high: number | null;
}

function row(point: Point, panel: string, series: string): Row {
  const { contender, length, y, low, high } = point;
  return { panel, series, family: contender.family, level: contender.level, length, y, low, high };
}

function seriesOf({ contender }: Point): string {
  if (contender.family === 'softmax' || contender.family === 'zamba') return familyTitles[contender.family];
  return `level ${contender.level}`;
}

function panelOrder(rows: readonly Row[]): string[] {
  return [...new Set(rows.map(({ panel }) => panel))];
}

/** Panels fill the page together. */
function panelWidth(rows: readonly Row[]): number {
  return Math.min(420, Math.floor(1040 / panelOrder(rows).length) - 14);
}

function valueAxis({ title, scale, format, domain }: Axis): object {
  return {
    field: 'y',
    type: 'quantitative',
    title,
    scale: {
      type: scale,
      ...(domain ? { domain, nice: false } : scale === 'log' ? { nice: true } : { zero: true }),
    },
    axis: { format, labelOverlap: true, tickCount: 6 },
  };
}

function dashed(test: string): object {
  return { strokeDash: { condition: { test, value: [4, 3] }, value: [1, 0] } };
}

function interval(axis: Axis): object {
  return {
    transform: [{ filter: 'isValid(datum.low)' }],
    mark: { type: 'rule', opacity: 0.6, clip: axis.domain !== undefined },
    encoding: { y: { ...valueAxis(axis), field: 'low' }, y2: { field: 'high' } },
  };
}

function colors(domain: readonly string[], range: readonly string[]): object {
  return { field: 'series', type: 'nominal', title: null, scale: { domain, range } };
}

async function render(spec: object): Promise<string> {
  // Loaded here, since it takes longer than all other commands need to start.
  const [{ parse, View }, { compile }] = await Promise.all([import('vega'), import('vega-lite')]);
  const text = { labelColor: 'currentColor', titleColor: 'currentColor', labelFontSize: 11, titleFontSize: 11 };
  const { spec: vega } = compile({
    ...spec,
    background: 'transparent',
    padding: 4,
    config: {
      font: 'system-ui, sans-serif',
      view: { stroke: null },
      axis: {
        ...text,
        titleFontWeight: 'normal',
        grid: true,
        gridColor: baseline,
        gridOpacity: 0.2,
        domainColor: baseline,
        tickColor: baseline,
      },
      legend: { ...text, orient: 'bottom', symbolType: 'circle', symbolOpacity: 1, columns: 8 },
      header: { ...text, titleFontWeight: 'normal', labelFontWeight: 'bold' },
      facet: { spacing: 14 },
    },
  } as TopLevelSpec);
  const view = new View(parse(vega), { renderer: 'none' });
  try {
    return await view.toSVG();
  } finally {
    view.finalize();
  }
}
