import type { Io } from '../ui/io.js';
import { type Column, renderTable } from '../ui/table.js';
import { formatSeconds, formatTokens } from '../ui/units.js';
import type { Report } from './report.js';
import { lengthsOf, nameOf, type Row, rowsAt } from './rows.js';

/** Columns of the comparison at one length; the page uses the same. */
export const columns: readonly Column<Row>[] = [
  { title: 'attention', align: 'left', cell: ({ contender }) => nameOf(contender) },
  { title: 'converted', cell: ({ level }) => level },
  { title: 'bits per byte', cell: ({ bitsPerByte }) => bitsPerByte },
  { title: 'above softmax', cell: ({ excess }) => excess },
  { title: 'far recall', cell: ({ recall }) => recall },
  { title: 'prefill t/s', cell: ({ prefill }) => prefill },
  { title: 'decode t/s', cell: ({ decode }) => decode },
  { title: 'cache', cell: ({ cache }) => cache },
  { title: 'faster decode', cell: ({ decodeFrom }) => decodeFrom },
  { title: 'smaller cache', cell: ({ cacheFrom }) => cacheFrom },
];

/** The comparison for the terminal: one table for each backend, at the longest length. */
export function renderReport(io: Io, report: Report): string {
  const longest = lengthsOf(report).at(-1)!;
  const blocks = report.backends.map(
    ({ name, description }) =>
      `At ${formatTokens(longest)} tokens on ${description}:\n${renderTable(io, columns, rowsAt(report, longest, name))}`,
  );
  return [
    ...blocks,
    'Bits per byte and recall with 95 % intervals, tokens a second with one standard deviation.',
    '"above softmax": paired difference on the same text. "faster decode", "smaller cache": from which length it gains on softmax.',
    ...report.gaps,
    `${report.machine.cpu}, ${report.machine.cores} cores, Node ${report.machine.node}; ${formatSeconds(report.seconds)}.`,
  ].join('\n');
}
