export interface Summary {
  readonly n: number;
  readonly mean: number;
  readonly median: number;
  readonly sd: number;
  readonly least: number;
}

export interface Row {
  readonly form: string;
  readonly programs: number;
  /** One decode step, in milliseconds. */
  readonly step: Summary;
  /** What a step took beyond the run of its sessions, which the computing thread timed in the same step. */
  readonly host?: Summary;
  /** Sum of the kernels' times in a step, by ONNX Runtime's profiler, which makes them longer. */
  readonly kernels?: number;
}

export interface Report {
  readonly command: string;
  readonly date: string;
  readonly hardware: string;
  readonly versions: string;
  /** Load average of the machine before and after. */
  readonly load: readonly number[];
  readonly model: { readonly parameters: number } & Readonly<Record<string, unknown>>;
  readonly depth: number;
  readonly byThreads: readonly { readonly threads: number; readonly rows: readonly Row[] }[];
}

export function summary(times: readonly number[]): Summary {
  const sorted = [...times].sort((a, b) => a - b);
  const n = times.length;
  const mean = times.reduce((sum, time) => sum + time, 0) / n;
  const sd = Math.sqrt(times.reduce((sum, time) => sum + (time - mean) ** 2, 0) / (n - 1));
  return { n, mean, sd, median: (sorted[(n - 1) >> 1]! + sorted[n >> 1]!) / 2, least: sorted[0]! };
}

const label: Readonly<Record<string, string>> = {
  fixed: 'fixed plan',
  swappable: 'swappable mixers',
  peer: 'one whole-model session',
};

/** A page from the numbers. */
export function render({ command, date, hardware, versions, load, model, depth, byThreads }: Report): string {
  const us = (ms: number | undefined): string => (ms === undefined ? '-' : (ms * 1000).toFixed(0));
  const share = ({ step, host }: Row): string => (host ? `${((100 * host.median) / step.median).toFixed(1)} %` : '-');
  const line = (row: Row, peer: Row): string =>
    [
      label[row.form],
      row.programs,
      us(row.step.median),
      us(row.step.mean),
      us(row.step.sd),
      us(row.step.least),
      us(row.host?.median),
      share(row),
      us(row.kernels),
      (row.step.median / peer.step.median).toFixed(2),
    ].join(' | ');
  const table = ({ threads, rows }: Report['byThreads'][number]): string => `
## ${threads} thread${threads > 1 ? 's' : ''}

| form | programs | step, median | mean | sd | least | host, median | host, share | in kernels, profiled | step against the session |
|---|---|---|---|---|---|---|---|---|---|
${rows.map((row) => `| ${line(row, rows.at(-1)!)} |`).join('\n')}
`;
  return `# Decoding on the CPU

One step of the small Llama (${(model.parameters / 1e6).toFixed(1)} M parameters, random weights) at ${depth} tokens of context, batch 1, microseconds,
n = ${byThreads[0]!.rows[0]!.step.n} a row; kinds alternate every 25 steps. "Host" is what a step takes beyond the run of its sessions, which the
computing thread times in the same step: checks, bindings, the way to that thread and back, the logits' copy. "One whole-model
session" is an ordinary ONNX model with its weights inside, run in place on the calling thread. The profiler's
sum of kernel times is from a pass of its own and counts the profiler's clock calls as kernel time.
${byThreads.map(table).join('')}
${date}, ${hardware}, ${versions}, load ${load.map((x) => x.toFixed(1)).join(' to ')}. Made by \`${command}\`; numbers in decode-cpu.json.
`;
}
