// What happens when things go wrong on CUDA, each in a process of its own: one JSON object a line on stdout with the error, whether the
// process lives and a new device computes the same as before, and the device's free memory. Bundled as conformance.ts is.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { createRequire, syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as after } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { Worker } from 'node:worker_threads';
import { type AttentionLayer, Scope, type StateStore } from '@dsla/spec';
import { bodyAndHead, randomWeights, synthetic } from '../../backend-webgpu/bench/synthetic.js';
import { libraryPath } from '../src/binding/choose.js';
import { folderVariable, providerLibrary } from '../src/binding/cuda-requirements.js';
import type { OnnxDevice } from '../src/device.js';
import { onnxBackend } from '../src/index.js';
import { failure } from './failure.js';

const { values: options } = parseArgs({
  options: {
    shape: { type: 'string', default: 'llama2-7b' },
    layers: { type: 'string', default: '2' },
    /** Tokens of the step that is disturbed. */
    prompt: { type: 'string', default: '8192' },
    case: { type: 'string' },
  },
});

const cases: Readonly<Record<string, () => Promise<Record<string, unknown>>>> = {
  'thread ended in mid-step': threadEnded,
  'no memory for a state': () => withoutMemory('state'),
  'no memory for a step': () => withoutMemory('step'),
  'provider of another version': () => withProvider('1.29.0', '1.28.0'),
  'no libcublas': () => withProvider('libcublas.so.1', 'libcublas.so.9'),
};

if (options.case === undefined) {
  for (const name of Object.keys(cases)) {
    const own = [...process.execArgv, fileURLToPath(import.meta.url), ...process.argv.slice(2), '--case', name];
    const { status, signal, stdout } = spawnSync(process.execPath, own, { encoding: 'utf8', stdio: [0, 'pipe', 2] });
    if (status === 0) process.stdout.write(stdout);
    else console.log(JSON.stringify({ fault: name, lives: false, status, signal }));
  }
} else {
  const result = await cases[options.case]!();
  console.log(JSON.stringify({ fault: options.case, lives: true, ...result }));
}

interface Opened {
  readonly device: OnnxDevice;
  stores(tokens: number): Record<string, StateStore>;
  /** The token drawn after `count` tokens. */
  step(states: Record<string, StateStore>, count: number): Promise<number>;
}

async function opened(scope: Scope): Promise<Opened> {
  const model = synthetic(options.shape, Number(options.layers));
  const device = scope.use((await onnxBackend.open({ extra: { device: 'cuda' } })) as OnnxDevice);
  const layers: AttentionLayer[] = [];
  for (const graph of bodyAndHead(model)) layers.push(scope.use(await device.compile(graph, randomWeights(model))));
  const specs = layers.flatMap(({ graph }) => graph.states);
  return {
    device,
    stores: (tokens) => Object.fromEntries(specs.map((spec) => [spec.name, device.createState(spec, 1, tokens)])),
    async step(states, count) {
      using step = device.beginStep({ ids: new Int32Array(count).fill(7), rows: [{ slot: 0, past: 0, count }] });
      for (const layer of layers) step.run(layer, states);
      step.draw!([{ temperature: 0, uniform: 0 }]);
      await step.submit();
      return (await device.download(step.value('ids'))).data[0]!;
    },
  };
}

/** A device of its own computes a long step and a short one. What ONNX Runtime takes for a long step it keeps for all devices. */
async function works(): Promise<{ readonly token: number; readonly free: number }> {
  await using scope = new Scope();
  const { step, stores, device } = await opened(scope);
  const count = Number(options.prompt);
  const long = stores(count);
  await step(long, count);
  for (const store of Object.values(long)) store[Symbol.dispose]();
  const token = await step(stores(16), 16);
  return { token, free: device.binding.available() };
}

/** What the device says before and after `disturb`. */
async function around(disturb: () => Promise<Record<string, unknown>>): Promise<Record<string, unknown>> {
  const before = await works();
  const result = await disturb();
  const afterwards = await works();
  return { ...result, same: before.token === afterwards.token, freeBefore: before.free, freeAfter: afterwards.free };
}

/** Nothing in the process is told: the thread is gone, as if it had been killed. */
async function threadEnded(): Promise<Record<string, unknown>> {
  const threads = createRequire(import.meta.url)('node:worker_threads') as { Worker: typeof Worker };
  const made: Worker[] = [];
  threads.Worker = class extends threads.Worker {
    constructor(...args: ConstructorParameters<typeof Worker>) {
      super(...args);
      made.push(this);
    }
  };
  syncBuiltinESMExports();
  return await around(async () => {
    await using scope = new Scope();
    const { step, stores, device } = await opened(scope);
    const count = Number(options.prompt);
    const states = stores(count);
    await step(states, count); // makes the sessions
    const running = failure(() => step(states, count));
    await after(3);
    await made.at(-1)!.terminate();
    const error = await running;
    const lost = await Promise.race([device.lost.then(({ message }) => message), after(1000, 'never')]);
    return { ...error, lost, next: await failure(() => step(states, 1)) };
  });
}

async function withoutMemory(what: 'state' | 'step'): Promise<Record<string, unknown>> {
  return await around(async () => {
    await using scope = new Scope();
    const { step, stores, device } = await opened(scope);
    const count = Number(options.prompt);
    const short = stores(16);
    const token = await step(short, 16);
    const long = stores(count);
    if (what === 'step') await step(long, 1); // its slot is there
    const blocks: { free(): void }[] = [];
    for (const bytes of [2 ** 31, 2 ** 26, 2 ** 22])
      while (device.binding.available() > bytes + 2 ** 22) blocks.push(device.binding.allocate(bytes, 'block'));
    const error = await failure(() => step(long, what === 'step' ? count : 1));
    const goesOn = (await step(short, 16)) === token;
    for (const block of blocks) block.free();
    const again = await failure(() => step(long, count));
    return { ...error, goesOn, again: again.error };
  });
}

/** The real files, but for the provider, in which one text stands for another of the same length. */
async function withProvider(text: string, other: string): Promise<Record<string, unknown>> {
  const real = process.env[folderVariable] ?? dirname(libraryPath());
  const folder = mkdtempSync(join(tmpdir(), 'provider-'));
  try {
    for (const name of ['libonnxruntime.so.1', 'libonnxruntime_providers_shared.so'])
      symlinkSync(join(real, name), join(folder, name));
    const content = readFileSync(join(real, providerLibrary));
    for (let at = content.indexOf(text); at >= 0; at = content.indexOf(text, at)) content.write(other, at, 'latin1');
    writeFileSync(join(folder, providerLibrary), content);
    process.env[folderVariable] = folder;
    const error = await failure(() => onnxBackend.open({ extra: { device: 'cuda' } }));
    process.env[folderVariable] = real;
    return { ...error, afterwards: await failure(works) };
  } finally {
    rmSync(folder, { recursive: true });
  }
}
