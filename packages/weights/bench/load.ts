// Peak memory while a checkpoint is loaded and kept, above the bytes kept. One process a row, so that peaks do not mix.
//   node --conditions=@dsla/source --import tsx packages/weights/bench/load.ts --json > docs/results/loading.json
//   node --conditions=@dsla/source --import tsx packages/weights/bench/load.ts --render docs/results/loading.json
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { cpus, tmpdir, totalmem, type } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { checkpointWriter, openCheckpoint, type TensorPlan, toBfloat16 } from '../src/index.js';

const limit = 200e6;

interface Row {
  readonly as: 'f32' | 'f16';
  readonly kept: number;
  readonly peak: number;
  /** Resident before the checkpoint was opened: Node and the program. */
  readonly start: number;
  readonly seconds: number;
}

interface Report {
  readonly command: string;
  readonly date: string;
  readonly hardware: string;
  readonly versions: string;
  readonly checkpoint: { readonly bytes: number; readonly shards: number; readonly tensors: number };
  readonly limit: number;
  readonly rows: readonly Row[];
}

const shards = 4;
const tensors: TensorPlan[] = Array.from({ length: 60 }, (_, i) => ({
  name: `model.layers.${i}.weight`,
  storage: 'bf16',
  shape: [4096, 4096],
}));
const elements = 4096 * 4096;

async function make(folder: string): Promise<void> {
  const values = toBfloat16(Float32Array.from({ length: elements }, (_, i) => Math.sin(i) * 0.02));
  await using writer = await checkpointWriter(folder, tensors, {
    shardBytes: (tensors.length / shards) * elements * 2,
  });
  for (const { name } of tensors) await writer.write(name, values);
  await writer.finish();
}

async function load(folder: string, as: Row['as']): Promise<Row> {
  const start = process.memoryUsage.rss();
  const begin = performance.now();
  await using checkpoint = await openCheckpoint(folder);
  const kept = [];
  for (const name of checkpoint.tensors.keys()) kept.push((await checkpoint.readFloats(name, { as })).data);
  const seconds = (performance.now() - begin) / 1000;
  const bytes = kept.reduce((sum, { byteLength }) => sum + byteLength, 0);
  return { as, kept: bytes, peak: process.resourceUsage().maxRSS * 1024, start, seconds };
}

async function measure(): Promise<Report> {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-load-'));
  try {
    await make(folder);
    const flags = [...process.execArgv, process.argv[1]!];
    const rows = (['f32', 'f16'] as const).map(
      (as) =>
        JSON.parse(
          execFileSync(process.execPath, [...flags, '--load', folder, '--as', as], { encoding: 'utf8' }),
        ) as Row,
    );
    return {
      command: 'node --conditions=@dsla/source --import tsx packages/weights/bench/load.ts --json',
      date: new Date().toISOString().slice(0, 10),
      hardware: `${cpus()[0]?.model ?? 'unknown'}, ${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, ${type()}`,
      versions: `Node ${process.versions.node}`,
      checkpoint: { bytes: tensors.length * elements * 2, shards, tensors: tensors.length },
      limit,
      rows,
    };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function render({ command, date, hardware, versions, checkpoint, limit: most, rows }: Report): string {
  const mb = (bytes: number) => (bytes / 1e6).toFixed(0);
  return `# Memory while loading

A synthetic checkpoint of ${mb(checkpoint.bytes)} MB (bfloat16, ${checkpoint.tensors} tensors, ${checkpoint.shards} shards) is opened, every tensor is converted and
kept. Peak is the largest resident set of the process, Node itself included; it may exceed the bytes kept by ${mb(most)} MB (1 MB
= 10^6 bytes). One process a row, one run; the seconds depend on the page cache and on what else the machine does.

| kept as | kept, MB | peak, MB | above, MB | of which Node at start, MB | seconds |
|---|---|---|---|---|---|
${rows.map((row) => `| ${row.as} | ${mb(row.kept)} | ${mb(row.peak)} | ${mb(row.peak - row.kept)} | ${mb(row.start)} | ${row.seconds.toFixed(1)} |`).join('\n')}

${date}, ${hardware}, ${versions}. Made by \`${command}\`; numbers in loading.json.
`;
}

const { values } = parseArgs({
  options: {
    json: { type: 'boolean' },
    render: { type: 'string' },
    load: { type: 'string' },
    as: { type: 'string', default: 'f32' },
  },
});
if (values.load !== undefined)
  console.log(JSON.stringify(await load(values.load, values.as === 'f16' ? 'f16' : 'f32')));
else if (values.render !== undefined)
  process.stdout.write(render(JSON.parse(readFileSync(values.render, 'utf8')) as Report));
else {
  const report = await measure();
  process.stdout.write(values.json ? `${JSON.stringify(report, null, 2)}\n` : render(report));
  if (report.rows.some(({ peak, kept }) => peak - kept > limit)) process.exitCode = 1;
}
