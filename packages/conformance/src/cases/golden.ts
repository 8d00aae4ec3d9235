import { type Device, f32, kvState, type Row } from '@dsla/spec';
import type { Bench, Case } from '../case.js';
import { expectClose } from '../compare.js';
import { type Golden, goldenNames, readGolden } from '../golden.js';
import { type Play, padded, playOf, type Settings } from '../golden-plays.js';
import { ropeOf } from '../mechanisms.js';
import { floats } from '../states.js';
import { tape } from '../tape.js';
import { plannedWeights } from '../weights.js';

// What PyTorch computed, forward only, on the device itself.

export const golden: readonly Case[] = goldenNames('ops').map((file) => ({
  name: `golden > ${file.replace('.safetensors', '')}`,
  run: async (bench) => {
    const found = readGolden(`ops/${file}`);
    if (found.settings.op === 'rope') await checkRope(bench, found);
    else await check(bench, found, playOf(found));
  },
}));

async function check(bench: Bench, { tensors }: Golden, play: Play): Promise<void> {
  const { forward, peak } = bench.tolerance;
  const { outputs, state } = await perform(bench.device, play);
  for (const [name, got] of Object.entries(outputs)) {
    const want = tensors.get(name)!;
    const wide = got.length / want.shape[0]!;
    const narrow = want.data.length / want.shape[0]!;
    // Padded values leave zeros in the last columns of every head.
    const heads = want.shape.length === 3 ? want.shape[1]! : 1;
    const expected = wide === narrow ? want : padded(want, narrow / heads, wide / heads);
    expectClose(name, got, floats(expected), forward, peak);
  }
  if (play.state) expectClose('state', state!, play.state, forward, peak);
}

/** Runs a golden case on a device. */
async function perform(
  device: Device,
  play: Play,
): Promise<{ outputs: Record<string, Float32Array>; state?: Float32Array }> {
  const { graph, weights } = play.tape;
  const total = Object.values(play.inputs)[0]!.shape[0]!;
  using layer = await device.compile(graph, plannedWeights(weights));
  const [spec] = graph.states;
  using store = spec ? device.createState(spec, 2, play.tokens ?? total) : undefined;
  if (play.start) store!.import(1, play.start);
  const pieces: Record<string, number[]> = {};
  let done = 0;
  for (const count of play.counts ?? [total]) {
    const row: Row = { slot: 1, past: (play.past ?? 0) + done, count };
    const inputs = Object.entries(play.inputs).map(([name, tensor]) => {
      const x = floats(tensor);
      const width = x.length / total;
      return [name, device.upload(f32([count, width], x.slice(done * width, (done + count) * width)))] as const;
    });
    using step = device.beginStep({ ids: new Int32Array(count), rows: [row] }, Object.fromEntries(inputs));
    step.run(layer, store && spec ? { [spec.name]: store } : {});
    await step.submit();
    for (const node of graph.nodes) {
      if (node.op !== 'output') continue;
      pieces[node.name] ??= [];
      pieces[node.name]!.push(...floats(await device.download(step.value(node.name))));
    }
    for (const [, buffer] of inputs) buffer[Symbol.dispose]();
    done += count;
  }
  const outputs = Object.fromEntries(Object.entries(pieces).map(([name, x]) => [name, Float32Array.from(x)]));
  return store ? { outputs, state: floats((await store.export(1))[0]!) } : { outputs };
}

/** The rotation is seen in the keys that an attention caches. */
async function checkRope({ device, tolerance }: Bench, { tensors, settings }: Golden): Promise<void> {
  const { heads, headDim } = settings as unknown as Settings;
  const width = heads * headDim;
  const positions = tensors.get('positions')!.data;
  const [x, y] = [floats(tensors.get('x')!), floats(tensors.get('y')!)];
  const spec = kvState('kv', { kvHeads: heads, headDim });
  const one = tape('rope', (t) => {
    const [q, k] = [t.input('q', width), t.input('k', width)];
    const shape = { heads, kvHeads: heads, headDim, scale: 1, rope: ropeOf(headDim) };
    t.output('o', t.push({ op: 'softmaxAttention', q, k, v: k, state: t.state(spec), ...shape }));
  });
  using layer = await device.compile(one.graph, plannedWeights(one.weights));
  const tokens = Math.max(...positions) + 1;
  using store = device.createState(spec, 1, tokens);
  store.import(
    0,
    spec.parts.map(() => f32([heads, tokens, headDim], new Float32Array(heads * tokens * headDim))),
  );
  const got: number[] = [];
  for (const [index, past] of positions.entries()) {
    using input = device.upload(f32([1, width], x.slice(index * width, (index + 1) * width)));
    using step = device.beginStep(
      { ids: new Int32Array(1), rows: [{ slot: 0, past, count: 1 }] },
      { q: input, k: input },
    );
    step.run(layer, { kv: store });
    await step.submit();
    const keys = floats((await store.export(0))[0]!);
    for (let head = 0; head < heads; head++) {
      const at = (head * tokens + past) * headDim;
      got.push(...keys.subarray(at, at + headDim));
    }
  }
  expectClose('rotated keys', got, y, tolerance.forward, tolerance.peak);
}
