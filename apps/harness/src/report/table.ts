import type { Io } from '../ui/io.js';
import { type Column, renderTable } from '../ui/table.js';
import { formatSeconds, formatTokens } from '../ui/units.js';
import type { Report } from './report.js';
import { lengthsOf, type Row, rowsAt } from './rows.js';

/** Columns of the comparison at one length; the page uses the same. */
export const columns: readonly Column<Row>[] = [
  { title: 'attention', align: 'left', cell: ({ contender }) => contender.label },
  { title: 'layers', cell: ({ level }) => level },
  { title: 'bits/byte', cell: ({ bitsPerByte }) => bitsPerByte },
  { title: 'vs softmax', cell: ({ excess }) => excess },
  { title: 'far recall', cell: ({ recall }) => recall },
  { title: 'prefill t/s', cell: ({ prefill }) => prefill },
  { title: 'decode t/s', cell: ({ decode }) => decode },
  { title: 'cache', cell: ({ cache }) => cache },
  { title: 'faster at', cell: ({ decodeFrom }) => decodeFrom },
  { title: 'smaller at', cell: ({ cacheFrom }) => cacheFrom },
];

/** The comparison for the terminal: one table for each backend, at the longest length. */
export function renderReport(io: Io, report: Report): string {
  const lengths = lengthsOf(report);
  const longest = lengths.at(-1)!;
  const blocks = report.backends.map(
    ({ name, description }) =>
      `At ${formatTokens(longest)} tokens on ${description}:\n${renderTable(io, columns, rowsAt(report, longest, name))}`,
  );
  const { machine, gaps, seconds } = report;
  return [
    ...blocks,
    ...(isUntuned(report)
      ? ['Untuned: before any tuning. Gates and mixes of the converted layers are at their initial values.']
      : []),
    'bits/byte ± half of the 95 % interval, recall with it; t/s ± one standard deviation. vs softmax: paired, same text.',
    `faster at, smaller at: tokens from which decode, the cache gain on softmax, within ${lengths[0]} to ${longest}.`,
    ...gaps.map((gap) => `Left out: ${gap}`),
    `${machine.cpu}, ${machine.cores} cores, Node ${machine.node}, ${report.text.name}; ${formatSeconds(seconds)}.`,
  ].join('\n');
}

/** Whether a converted layer runs on initial values. */
export function isUntuned({ contenders }: Report): boolean {
  return contenders.some(({ level, family, tuned }) => level > 0 && family !== 'window' && !tuned);
}
