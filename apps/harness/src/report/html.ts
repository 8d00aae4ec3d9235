import type { Column } from '../ui/table.js';
import { formatBytes, formatCount, formatSeconds, formatTokens, significant } from '../ui/units.js';
import { type Axis, byLength, byLevel } from './charts.js';
import { cachePoints, contendersOf, type Point, qualityPoints, speedPoints } from './points.js';
import type { Report, Speed } from './report.js';
import { lengthsOf, type Row, rowsAt } from './rows.js';
import { css } from './style.js';
import { columns, isUntuned } from './table.js';

/** The whole report as one page that needs neither network nor scripts; the JSON is embedded. */
export async function renderHtml(report: Report): Promise<string> {
  const title = `dsla compare, ${report.createdAt.slice(0, 10)}`;
  const sections = [
    overview(report),
    await qualitySection(report),
    await speedSection(report),
    await cacheSection(report),
    breakEvenSection(report),
    rawSection(report),
    runSection(report),
  ];
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeHtml(title)}</title>
<style>${css}</style>
</head>
<body>
<main>
${sections.filter((section) => section !== '').join('\n')}
</main>
<script type="application/json" id="report">${JSON.stringify(report).replaceAll('<', '\\u003c')}</script>
</body>
</html>
`;
}

/** Text for HTML. */
function escapeHtml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;');
}

function overview(report: Report): string {
  const longest = lengthsOf(report).at(-1)!;
  const names = report.models.map(({ name }) => escapeHtml(name)).join(' and ');
  const head = `<h1>Attention compared</h1>
<p class="lead">${names} on ${escapeHtml(report.machine.cpu)}, ${report.machine.cores} cores; text: ${escapeHtml(report.text.name)}. Every contender read the same windows.</p>
${isUntuned(report) ? '<p class="note"><strong>Untuned: before any tuning.</strong> Converted layers share the softmax weights; their gates and mixes are at their initial values.</p>' : ''}`;
  const tables = report.backends.map(
    ({ name, description }) => `<h2>At ${formatTokens(longest)} tokens</h2>
<p>${escapeHtml(description)}</p>
${table([...columns, { title: 'weights', cell: ({ weights }) => weights }], rowsAt(report, longest, name), isBaseline)}`,
  );
  return `${head}\n${tables.join('\n')}
<p class="small">Bits per byte ± half of the 95 % interval, recall with that interval; tokens a second ± one standard deviation. “vs softmax” is the paired difference on the same windows, so its interval is narrower than that of either value. “Faster at” and “smaller at” name the context from which decode and the cache gain on softmax at every longer measured length.</p>
${report.gaps.length > 0 ? list(report.gaps.map((gap) => `Left out: ${gap}`)) : ''}`;
}

async function qualitySection(report: Report): Promise<string> {
  const bits = qualityPoints(report, 'bitsPerByte');
  const recall = qualityPoints(report, 'recall');
  const recallAxis = { title: 'recall', scale: 'linear', format: '.1f' } as const;
  const parts: string[] = [];
  if (bits.length > 0) {
    const out = outliers(bits);
    const beyond = out.length === 0 ? '' : ` Beyond the chart: ${escapeHtml(out.map(nameAndValue).join(', '))}.`;
    const excess = [...baselineAtZero(bits), ...qualityPoints(report, 'excess')];
    const excessAxis: Axis = { title: 'above softmax', scale: 'linear', format: '.3~g', domain: domainOf(excess, out) };
    const bitsAxis: Axis = { title: 'bits per byte', scale: 'log', format: '.3~g', domain: domainOf(bits, out) };
    parts.push(
      figure(
        await byLevel(excess, excessAxis),
        `Bits per byte above the softmax model on the same windows, with 95 % intervals of the paired differences (long ones are cut); lower is better.${beyond}`,
      ),
      figure(
        await byLength(bits, bitsAxis, 'window in tokens'),
        `Bits per byte against the length of the window, with 95 % intervals (long ones are cut); lower is better.${beyond}`,
      ),
    );
  }
  if (recall.length > 0) {
    parts.push(
      figure(
        await byLevel(recall, recallAxis),
        'Recall against converted layers, by distance (up to the length named, from half of it). 95 % intervals.',
      ),
      figure(
        await byLength(recall, recallAxis, 'distance up to'),
        'Recall against the distance between fact and question; higher is better.',
      ),
    );
  }
  return parts.length > 0 ? `<h2>Quality</h2>\n${parts.join('\n')}` : '';
}

/** The last points of contenders beyond 1.3 times the softmax model: they would flatten all others. */
function outliers(points: readonly Point[]): readonly Point[] {
  const highest = Math.max(...points.filter(({ contender }) => contender.family === 'softmax').map(({ y }) => y));
  const out = points.filter(({ y }) => y > 1.3 * highest);
  return [...new Map(out.map((point) => [point.contender.id, point])).values()];
}

function nameAndValue({ contender, y }: Point): string {
  return `${contender.label} at level ${contender.level} (${significant(y)} bits per byte)`;
}

/** From the lowest to the highest value that is no outlier, with room for short intervals; longer ones are cut. */
function domainOf(points: readonly Point[], out: readonly Point[]): readonly [number, number] {
  const ids = new Set(out.map(({ contender }) => contender.id));
  const values = points.filter(({ contender }) => !ids.has(contender.id)).map(({ y }) => y);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = 0.4 * (high - low) || 0.01 * Math.abs(high) || 1;
  return [low - room, high + room];
}

/** The softmax model is what the others are measured from. */
function baselineAtZero(bits: readonly Point[]): readonly Point[] {
  const baseline = bits.filter(({ contender }) => contender.family === 'softmax');
  return baseline.map((point) => ({ ...point, y: 0, low: null, high: null }));
}

async function speedSection(report: Report): Promise<string> {
  const parts: string[] = [];
  for (const { name } of report.backends) {
    for (const [test, what] of [
      ['decode', 'Decode: tokens a second of one sequence against the context held.'],
      ['prefill', 'Prefill: tokens a second against the length of the prompt.'],
    ] as const) {
      const points = speedPoints(report, test, name);
      if (points.length === 0) continue;
      const axis = { title: 'tokens a second', scale: 'linear', format: ',.3~r' } as const;
      const note = `${what} Backend ${escapeHtml(name)}; higher is better. Mean and one standard deviation.`;
      parts.push(figure(await byLevel(points, axis), note));
      parts.push(figure(await byLength(points, axis, 'tokens'), note));
    }
  }
  return parts.length > 0 ? `<h2>Speed</h2>\n${parts.join('\n')}` : '';
}

async function cacheSection(report: Report): Promise<string> {
  const points = cachePoints(report);
  if (points.length === 0) return '';
  const axis = { title: 'bytes', scale: 'log', format: '.3~s' } as const;
  return `<h2>Cache</h2>
${figure(await byLength(points, axis, 'context in tokens'), 'Bytes of one sequence’s cache against the context; lower is better. Both axes are logarithmic.')}`;
}

function breakEvenSection(report: Report): string {
  if (report.crossings.length === 0) return '';
  const contenders = contendersOf(report);
  const rows = report.crossings.map((crossing) => ({ ...crossing, of: contenders.get(crossing.contender)! }));
  type Row = (typeof rows)[number];
  const from = ({ from, shortest, longest }: Row) =>
    from === 'always'
      ? `at every measured length (${formatTokens(shortest)} to ${formatTokens(longest)})`
      : from === 'never'
        ? `not up to ${formatTokens(longest)}`
        : `from ${Math.round(from)} tokens`;
  const cells: readonly Column<Row>[] = [
    { title: 'attention', align: 'left', cell: ({ of }) => of.label },
    { title: 'converted', cell: ({ of }) => `${of.level} / ${of.layers}` },
    { title: 'gains on softmax in', align: 'left', cell: ({ quantity }) => quantity },
    { title: 'backend', align: 'left', cell: ({ backend, quantity }) => (quantity === 'cache' ? '' : backend) },
    { title: 'where', align: 'left', cell: from },
  ];
  return `<h2>Break-even</h2>
<p>Lengths between the measured ones by straight lines through the medians; nothing is extrapolated.</p>
${details('All break-even lengths', table(cells, rows))}`;
}

function rawSection(report: Report): string {
  const contenders = contendersOf(report);
  const name = (id: string) => {
    const contender = contenders.get(id)!;
    return contender.family === 'zamba' ? contender.label : `${contender.label} ${contender.level}/${contender.layers}`;
  };
  const quality: readonly Column<Report['recall'][number]>[] = [
    { title: 'contender', align: 'left', cell: ({ contender }) => name(contender) },
    { title: 'window', cell: ({ length }) => String(length) },
    { title: 'value', cell: ({ estimate }) => estimate.value.toFixed(4) },
    { title: 'low', cell: ({ estimate }) => estimate.low?.toFixed(4) ?? '–' },
    { title: 'high', cell: ({ estimate }) => estimate.high?.toFixed(4) ?? '–' },
    { title: 'n', cell: ({ estimate }) => String(estimate.n) },
  ];
  const speed: readonly Column<Speed>[] = [
    { title: 'contender', align: 'left', cell: ({ contender }) => name(contender) },
    { title: 'backend', align: 'left', cell: ({ backend }) => backend },
    { title: 'test', align: 'left', cell: ({ test }) => test },
    { title: 'tokens', cell: ({ length }) => String(length) },
    { title: 'n', cell: ({ samples }) => String(samples.length) },
    { title: 'mean t/s', cell: ({ mean }) => significant(mean) },
    { title: 'sd', cell: ({ sd }) => (sd === null ? '–' : significant(sd)) },
    { title: 'median', cell: ({ median }) => significant(median) },
    { title: 'samples in ms', align: 'left', cell: ({ samples }) => samples.map(significant).join(' ') },
  ];
  const cache: readonly Column<Report['cache'][number]>[] = [
    { title: 'contender', align: 'left', cell: ({ contender }) => name(contender) },
    { title: 'tokens', cell: ({ length }) => String(length) },
    { title: 'bytes', cell: ({ bytes }) => String(bytes) },
  ];
  return `<h2>Numbers</h2>
${details('Bits per byte', table(quality, report.bitsPerByte))}
${details('Bits per byte above softmax, paired', table(quality, report.excess))}
${details('Recall', table([...quality, { title: 'distances', cell: ({ from, to }) => `${from} to ${to}` }], report.recall))}
${details('Speed', table(speed, report.speed))}
${details('Cache', table(cache, report.cache))}`;
}

function runSection(report: Report): string {
  const { machine } = report;
  const facts: readonly (readonly [string, string])[] = [
    ['date', report.createdAt],
    ['took', formatSeconds(report.seconds)],
    ['command', report.command.join(' ')],
    ['commit', report.commit ?? 'not in a repository'],
    ['machine', `${machine.cpu}, ${machine.cores} cores, ${formatBytes(machine.memoryBytes)}, ${machine.system}`],
    ['Node', machine.node],
    ...Object.entries(machine.packages),
    ...report.backends.map(
      ({ name, description, threads }) =>
        [`backend ${name}`, `${description}${threads === null ? '' : `, ${threads} threads`}`] as const,
    ),
    ['text', `${report.text.name}, ${formatBytes(report.text.bytes)}, sha256 ${report.text.sha256}`],
    ...report.models.map(
      (model) =>
        [
          `model ${model.id}`,
          `${model.name}: ${model.architecture}, ${formatCount(model.parameters)} parameters, vocabulary ${model.vocabulary}, context ${model.context}${model.order.length > 0 ? `; order of conversion ${model.order.join(', ')} (${model.orderOrigin})` : ''}`,
        ] as const,
    ),
  ];
  return `<h2>How it was measured</h2>
${list(report.protocol)}
<dl>
${facts.map(([term, value]) => `<dt>${escapeHtml(term)}</dt><dd>${escapeHtml(value)}</dd>`).join('\n')}
</dl>`;
}

function isBaseline({ contender }: Row): boolean {
  return contender.family === 'softmax' || contender.family === 'zamba';
}

function table<T>(cells: readonly Column<T>[], rows: readonly T[], marked: (row: T) => boolean = () => false): string {
  const kind = ({ align }: Column<T>) => (align === 'left' ? '' : ' class="number"');
  const head = cells.map((column) => `<th${kind(column)}>${escapeHtml(column.title)}</th>`).join('');
  const body = rows.map(
    (row) =>
      `<tr${marked(row) ? ' class="baseline"' : ''}>${cells.map((column) => `<td${kind(column)}>${escapeHtml(column.cell(row))}</td>`).join('')}</tr>`,
  );
  return `<div class="scroll"><table><thead><tr>${head}</tr></thead><tbody>\n${body.join('\n')}\n</tbody></table></div>`;
}

function figure(svg: string, caption: string): string {
  return `<figure><div class="scroll">${svg}</div><figcaption>${caption}</figcaption></figure>`;
}

function details(title: string, content: string): string {
  return `<details><summary>${title}</summary>${content}</details>`;
}

function list(items: readonly string[]): string {
  return `<ul>${items.map((item) => `<li>${escapeHtml(item)}</li>`).join('')}</ul>`;
}
