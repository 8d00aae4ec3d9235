// A chain on a host without this repository: one file, settings as JSON in, a conversion and result.json out. Resumes by itself.
//   node_modules/.pnpm/node_modules/.bin/esbuild packages/distill/bench/chain-gpu.ts --bundle --platform=node --format=esm \
//     --target=node20 --conditions=@dsla/source --external:webgpu --outfile=chain-gpu.mjs \
//     --banner:js="import { createRequire as r } from 'node:module'; const require = r(import.meta.url);"
//   node chain-gpu.mjs settings.json out
// For the webgpu engine the host needs the package `webgpu` in node_modules beside the file.
// Settings: { "base": folder, "data": path, "heldOut"?: path, "order"?: path, "level": n, "engine"?: name, "mixer"?: options,
//   "name"?: of the mixer, "published"?: true, "recipe"?: what differs from the default, with "match" and "logits" inside }
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { tfjsBackend } from '@dsla/backend-tfjs';
import type { MixerOptions } from '@dsla/models';
import { parseOrder } from '@dsla/policy';
import { isTrainingDevice } from '@dsla/spec';
import {
  chain,
  foldableRecipe,
  type LevelResult,
  openStudent,
  openText,
  partOf,
  publishedRecipe,
  type Recipe,
} from '../src/index.js';

interface Settings {
  readonly base: string;
  readonly data: string;
  readonly heldOut?: string;
  readonly order?: string;
  readonly level: number;
  readonly engine?: string;
  readonly name?: string;
  readonly mixer?: MixerOptions;
  readonly published?: true;
  readonly recipe?: Partial<Omit<Recipe, 'match' | 'logits'>> & {
    readonly match?: Partial<Recipe['match']>;
    readonly logits?: Partial<Recipe['logits']>;
  };
}

const [file, out] = process.argv.slice(2);
if (!file || !out) throw new Error('usage: node chain-gpu.mjs settings.json out');
const read = (path: string): unknown => JSON.parse(readFileSync(path, 'utf8'));
const settings = read(file) as Settings;
const { base, level, engine, published, name = published ? 'published' : 'foldable' } = settings;
const standard = published ? publishedRecipe : foldableRecipe;
const { match, logits, ...rest } = settings.recipe ?? {};
const recipe: Recipe = {
  ...standard,
  ...rest,
  match: { ...standard.match, ...match },
  logits: { ...standard.logits, ...logits },
};
const options: MixerOptions = settings.mixer ?? { kind: published ? 'published' : 'dual' };
const orderFile = settings.order ?? join(base, 'order.json');
const text = await openText(settings.data);
const heldOut = settings.heldOut ? await openText(settings.heldOut) : partOf(text, 0.95, 1);

await using device = await tfjsBackend.open(engine === undefined ? {} : { extra: { engine } });
if (!isTrainingDevice(device)) throw new Error(`${device.description} does not train`);
console.log(device.description);
await using student = await openStudent(base, { device, mixer: { name, options } });

const started = performance.now();
let tokens = 0;
let levels: readonly LevelResult[] = [];
const driverTool = 'nvidia-smi';
/** What the driver says of the GPU: name, driver, memory in use in MiB; nothing without one. */
const gpu = smi('name,driver_version');
let gpuMiB = 0;
const losses: (readonly [task: string, step: number, loss: number])[] = [];

/** Also after every level, so that a run that is cut short has its figures. */
function writeResult(): void {
  const seconds = (performance.now() - started) / 1000;
  const result = {
    settings,
    recipe,
    device: device.description,
    host: { cpu: cpus()[0]?.model, cores: cpus().length, node: process.version, gpu },
    seconds,
    tokens,
    tokensPerSecond: tokens / seconds,
    gpuMiB,
    residentBytes: process.resourceUsage().maxRSS * 1024,
    levels,
    losses,
  };
  writeFileSync(join(out!, 'result.json'), `${JSON.stringify(result)}\n`);
}

function smi(query: string): string | undefined {
  try {
    return execFileSync(driverTool, [`--query-gpu=${query}`, '--format=csv,noheader,nounits'], {
      encoding: 'utf8',
    }).trim();
  } catch {
    return undefined;
  }
}

levels = await chain(student, {
  order: parseOrder(read(orderFile), orderFile, student.description.convertible),
  level,
  recipe,
  data: settings.heldOut ? text : partOf(text, 0, 0.95),
  heldOut,
  out,
  resume: true,
  onProgress(event) {
    if (event.kind !== 'step') {
      console.log(`${((performance.now() - started) / 1000).toFixed(1)} s`, JSON.stringify(event));
      gpuMiB = Math.max(gpuMiB, Number(smi('memory.used') ?? 0));
      if (event.kind === 'level') levels = [...levels, event.result];
      writeResult();
      return;
    }
    const stage = recipe[event.task.endsWith('match') ? 'match' : 'logits'];
    tokens += stage.rows * stage.accumulate * recipe.tokens;
    losses.push([event.task, event.step, event.loss]);
    if (event.step % 25 === 0) {
      console.log(event.task, event.step, event.loss.toPrecision(4), `${event.secondsLeft.toFixed(0)} s left`);
    }
  },
});
writeResult();
console.log(`${((performance.now() - started) / 1000).toFixed(1)} s`);
process.exit(0); // Dawn keeps the process alive
