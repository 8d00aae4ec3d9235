// A chain on a host without this repository: one file, settings as JSON in, a conversion and result.json out. Resumes by itself.
//   node_modules/.pnpm/node_modules/.bin/esbuild packages/distill/bench/chain-gpu.ts --bundle --platform=node --format=esm \
//     --target=node20 --conditions=@dsla/source --external:webgpu --outfile=chain-gpu.mjs \
//     --banner:js="import { createRequire as r } from 'node:module'; const require = r(import.meta.url);"
//   node chain-gpu.mjs settings.json out
// For the webgpu engine the host needs the package `webgpu` in node_modules beside the file, and an entry by which the engine
// is found there: node_modules/@tensorflow/tfjs-backend-webgpu/{package.json,index.js}, which may be empty ({} and nothing).
// Settings: { "base": folder, "data": path, "heldOut"?: path, "order"?: path, "level": n, "engine"?: name, "mixer"?: options,
//   "name"?: of the mixer, "published"?: true, "recipe"?: what differs from the default, with "match" and "logits" inside }
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tfjsBackend } from '@dsla/backend-tfjs';
import type { MixerOptions } from '@dsla/models';
import { parseOrder } from '@dsla/policy';
import { isTrainingDevice } from '@dsla/spec';
import { chain, foldableRecipe, openStudent, openText, partOf, publishedRecipe, type Recipe } from '../src/index.js';

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
let deviceBytes = 0;
const losses: (readonly [task: string, step: number, loss: number])[] = [];
const levels = await chain(student, {
  order: parseOrder(read(orderFile), orderFile, student.description.convertible),
  level,
  recipe,
  data: settings.heldOut ? text : partOf(text, 0, 0.95),
  heldOut,
  out,
  resume: true,
  onProgress(event) {
    if (event.kind !== 'step') {
      console.log(JSON.stringify(event));
      return;
    }
    const stage = recipe[event.task.endsWith('match') ? 'match' : 'logits'];
    tokens += stage.rows * stage.accumulate * recipe.tokens;
    deviceBytes = Math.max(deviceBytes, device.memory().bytes);
    losses.push([event.task, event.step, event.loss]);
    if (event.step % 25 === 0) {
      console.log(event.task, event.step, event.loss.toPrecision(4), `${event.secondsLeft.toFixed(0)} s left`);
    }
  },
});
const seconds = (performance.now() - started) / 1000;
const result = {
  settings,
  recipe,
  device: device.description,
  seconds,
  tokens,
  tokensPerSecond: tokens / seconds,
  deviceBytes,
  residentBytes: process.resourceUsage().maxRSS * 1024,
  levels,
  losses,
};
writeFileSync(join(out, 'result.json'), `${JSON.stringify(result, null, 1)}\n`);
console.log(`${seconds.toFixed(1)} s, ${(tokens / seconds).toFixed(0)} tokens/s`);
