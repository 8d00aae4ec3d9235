// Decode steps of the small Llama on the CPU: what a step costs, how much of it ONNX Runtime itself takes, and one session of
// the whole model, run directly, beside it.
//   node --import tsx packages/backend-onnx/bench/decode.ts --json > docs/results/decode-cpu.json
//   node --import tsx packages/backend-onnx/bench/decode.ts --render docs/results/decode-cpu.json
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { cpus, loadavg, tmpdir, totalmem, type } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { onnxBackend } from '@dsla/backend-onnx';
import { type AttentionLayer, type Device, Scope } from '@dsla/spec';
import type { OnnxDevice } from '../src/device.js';
import { type Form, forms, parameters, shape, weights } from './llama.js';
import { openPeer, type Peer } from './peer.js';
import { type Report, type Row, render, summary } from './report.js';

const depth = 256; // tokens in the cache at the first step
const capacity = 1024;
const block = 25; // steps of one kind before the next kind has its turn

/** A model compiled for a device. */
interface Decoder {
  step(id: number, past: number): Promise<Float32Array>;
}

async function decoder(device: Device, form: Form, scope: Scope): Promise<Decoder> {
  const layers: AttentionLayer[] = [];
  for (const graph of forms[form]) layers.push(scope.use(await device.compile(graph, weights)));
  const specs = forms[form].flatMap(({ states }) => states);
  const states = Object.fromEntries(specs.map((spec) => [spec.name, scope.use(device.createState(spec, 1, capacity))]));
  return {
    async step(id, past) {
      using step = device.beginStep({ ids: Int32Array.of(id), rows: [{ slot: 0, past, count: 1 }] });
      for (const layer of layers) step.run(layer, states);
      await step.submit();
      return (await device.download(step.value('logits'))).data as Float32Array;
    },
  };
}

/** Time in ONNX Runtime's kernels per step, in milliseconds, by its own profiler, in a pass of its own. */
async function profiledKernels(form: Form, threads: number, steps: number): Promise<number> {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-decode-'));
  try {
    {
      await using scope = new Scope();
      const device = scope.use(
        await onnxBackend.open({ threads, extra: { binding: 'c-api', profile: join(folder, 'p') } }),
      );
      const { step } = await decoder(device, form, scope);
      for (let i = 0; i < steps; i++) await step(i, depth + (i % block));
    }
    const events = readdirSync(folder).flatMap(
      (file) => JSON.parse(readFileSync(join(folder, file), 'utf8')) as { cat: string; name: string; dur: number }[],
    );
    const kernels = events.filter(({ cat, name }) => cat === 'Node' && name.endsWith('_kernel_time'));
    return kernels.reduce((sum, { dur }) => sum + dur, 0) / 1000 / steps;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function measure(threads: number, rounds: number): Promise<Row[]> {
  const names = Object.keys(forms) as Form[];
  const kernels = new Map<Form, number>();
  for (const form of names) kernels.set(form, await profiledKernels(form, threads, 20 * block));
  await using scope = new Scope();
  const device = scope.use(await onnxBackend.open({ threads, extra: { binding: 'c-api' } }));
  const decoders = new Map<Form, Decoder>();
  for (const form of names) decoders.set(form, await decoder(device, form, scope));
  const peer: Peer = await openPeer(threads, capacity);

  const steps = new Map<Form | 'peer', number[]>([...names, 'peer' as const].map((name) => [name, []]));
  const host = new Map<Form, number[]>(names.map((name) => [name, []]));
  for (let round = -2; round < rounds; round++) {
    for (let i = 0; i < block; i++) await sameLogits(peer, decoders, i); // also warms up
    for (const form of names) {
      const { step } = decoders.get(form)!;
      for (let i = 0; i < block; i++) {
        const start = performance.now();
        await step(i, depth + i);
        const time = performance.now() - start;
        if (round < 0) continue;
        steps.get(form)!.push(time);
        host.get(form)!.push(time - (device as OnnxDevice).binding.computed / 1000);
      }
    }
    for (let i = 0; i < block; i++) {
      const start = performance.now();
      peer.step(i, depth + i);
      if (round >= 0) steps.get('peer')!.push(performance.now() - start);
    }
  }
  peer.close();
  return [
    ...names.map((form) => ({
      form,
      programs: forms[form].length,
      step: summary(steps.get(form)!),
      host: summary(host.get(form)!),
      kernels: kernels.get(form)!,
    })),
    { form: 'peer', programs: 1, step: summary(steps.get('peer')!) },
  ];
}

/** All compute the same, or the comparison would mean nothing. */
async function sameLogits(peer: Peer, decoders: ReadonlyMap<Form, Decoder>, i: number): Promise<void> {
  const want = peer.step(i, depth + i);
  for (const [form, { step }] of decoders) {
    const got = await step(i, depth + i);
    const worst = want.reduce((most, x, at) => Math.max(most, Math.abs(x - got[at]!)), 0);
    if (!(worst < 1e-3)) throw new Error(`${form} is off by ${worst} from the whole-model session`);
  }
}

async function report(rounds: number): Promise<Report> {
  const before = loadavg()[0]!;
  const byThreads = [];
  for (const threads of [1, 2]) byThreads.push({ threads, rows: await measure(threads, rounds) });
  return {
    command: 'node --import tsx packages/backend-onnx/bench/decode.ts --json',
    date: new Date().toISOString().slice(0, 10),
    hardware: `${cpus()[0]?.model ?? 'unknown'}, ${cpus().length} cores, ${Math.round(totalmem() / 2 ** 30)} GiB, ${type()}`,
    versions: `Node ${process.versions.node}, onnxruntime-node 1.29.0`,
    load: [before, loadavg()[0]!],
    model: { ...shape, parameters },
    depth,
    byThreads,
  };
}

const { values } = parseArgs({
  options: { json: { type: 'boolean' }, render: { type: 'string' }, rounds: { type: 'string', default: '20' } },
});
if (values.render !== undefined)
  process.stdout.write(render(JSON.parse(readFileSync(values.render, 'utf8')) as Report));
else {
  const made = await report(Number(values.rounds));
  process.stdout.write(values.json ? `${JSON.stringify(made, null, 2)}\n` : render(made));
}
