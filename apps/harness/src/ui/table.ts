import { stripVTControlCharacters } from 'node:util';
import { Table } from 'console-table-printer';
import { colorsFor, type Io } from './io.js';

export interface Column<Row> {
  readonly title: string;
  /** Numbers are set right, words left. */
  readonly align?: 'left' | 'right';
  cell(row: Row): string;
}

/** A table for the terminal. */
export function renderTable<Row>(io: Io, columns: readonly Column<Row>[], rows: readonly Row[]): string {
  const table = new Table({
    columns: columns.map(({ title, align }) => ({ name: title, alignment: align ?? 'right' })),
  });
  for (const row of rows) {
    table.addRow(Object.fromEntries(columns.map((column) => [column.title, column.cell(row)])));
  }
  const text = table.render();
  return colorsFor(io.out, io.env).isColorSupported ? text : stripVTControlCharacters(text);
}

/** The same as Markdown. */
export function renderMarkdown<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string {
  const line = (cells: readonly string[]) => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`;
  return [
    line(columns.map(({ title }) => title)),
    line(columns.map(({ align }) => (align === 'left' ? ':--' : '--:'))),
    ...rows.map((row) => line(columns.map((column) => column.cell(row)))),
  ].join('\n');
}

/** The same as comma-separated values (RFC 4180). */
export function renderCsv<Row>(columns: readonly Column<Row>[], rows: readonly Row[]): string {
  const quote = (cell: string) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return [columns.map(({ title }) => title), ...rows.map((row) => columns.map((column) => column.cell(row)))]
    .map((cells) => cells.map(quote).join(','))
    .join('\n');
}
