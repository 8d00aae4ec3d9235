// Parts of the pages in docs/results.

export type Cell = string | number | undefined;

export function table(head: readonly string[], rows: readonly (readonly Cell[])[]): string {
  return [head, head.map(() => '---'), ...rows]
    .map((row) => `| ${row.map((cell) => cell ?? '').join(' | ')} |`)
    .join('\n');
}

export function bullets(list: readonly string[]): string {
  return list.map((line) => `- ${line}`).join('\n');
}

export function commands(list: readonly string[]): string {
  return bullets(list.map((line) => `\`${line}\``));
}

/** What was to be reached, and what was. */
export interface Goal {
  readonly goal: string;
  readonly limit: number;
  /** Nothing where it was not measured. */
  readonly measured: number | undefined;
  readonly unit: string;
  readonly code: string;
}

export function goals(list: readonly Goal[]): string {
  const shown = (x: number) =>
    Number.isInteger(x) ? String(x) : x >= 100 ? x.toFixed(0) : x >= 0.1 ? x.toFixed(2) : x.toExponential(1);
  return table(
    ['goal', 'at most', 'measured', '', 'code'],
    list.map(({ goal, limit, measured, unit, code }) => [
      goal,
      `${shown(limit)} ${unit}`.trim(),
      measured === undefined ? '' : `${shown(measured)} ${unit}`.trim(),
      measured === undefined ? 'not measured' : measured <= limit ? 'met' : 'missed',
      measured === undefined ? '' : code,
    ]),
  );
}
