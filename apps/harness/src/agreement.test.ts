import { onnxBackend } from '@dsla/backend-onnx';
import { tfjsBackend } from '@dsla/backend-tfjs';
import { openStudent, readTuned, type Student } from '@dsla/distill';
import type { Segment } from '@dsla/models';
import { f32, isTrainingDevice, joinGraphs } from '@dsla/spec';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { embedded, inspect, openTuned } from './checkpoint.js';
import { readText } from './measure/text.js';

// Training and serving agree on the conversion that comes with this package: every tuned layer, on the inputs that the model
// gives it, by the tape that was trained (TensorFlow.js, all tokens at once) and by the one that serves (ONNX Runtime, steps).

const tokens = 300; // more than the window, so that the states count
const steps = [200, 99, 1];
const signal = new AbortController().signal;

let student: Student;
let order: readonly number[];
let ids: Int32Array;
const close: AsyncDisposable[] = [];

beforeAll(async () => {
  const base = embedded('llama-4m');
  const { checkpoint, tuned } = await openTuned(await inspect(base), embedded('llama-4m-dsla'), signal);
  const device = await tfjsBackend.open({ extra: { engine: 'wasm' } });
  if (!isTrainingDevice(device)) throw new Error('tfjs must train');
  student = await openStudent(base, { device, mixer: { name: tuned.mixer, options: tuned.options } });
  close.push(student, device);
  order = checkpoint.order;
  for (const [name, value] of await readTuned(tuned.folder)) student.tuned.set(name, value);
  const { content } = await readText(undefined);
  ids = Int32Array.from(student.tokenizer.encode(content.slice(0, 8 * tokens)).slice(0, tokens));
});
afterAll(async () => {
  for (const each of close) await each[Symbol.asyncDispose]();
});

/** Hidden states before a layer. */
async function before(at: number): Promise<Float32Array> {
  const { device, description, weights } = student;
  const graphs = description.segments.slice(0, at).map(({ versions }) => versions.default);
  using below = await device.compileTrainable(joinGraphs(graphs, new Set(['x'])), weights, []);
  const { x } = below.forward({ rows: 1, tokens, ids });
  using own = x!;
  return (await device.download(own)).data as Float32Array;
}

async function served(tape: ReturnType<typeof joinGraphs>, x: Float32Array, width: number): Promise<Float32Array> {
  await using device = await onnxBackend.open({ threads: 1 });
  using layer = await device.compile(tape, student.weights);
  const stores = Object.fromEntries(tape.states.map((spec) => [spec.name, device.createState(spec, 1, tokens)]));
  const out = new Float32Array(tokens * width);
  let past = 0;
  for (const count of steps) {
    using input = device.upload(f32([count, width], x.slice(past * width, (past + count) * width)));
    using step = device.beginStep(
      { ids: ids.subarray(past, past + count), rows: [{ slot: 0, past, count }] },
      { x: input },
    );
    step.run(layer, stores);
    await step.submit();
    out.set((await device.download(step.value('o'))).data as Float32Array, past * width);
    past += count;
  }
  for (const store of Object.values(stores)) store[Symbol.dispose]();
  return out;
}

describe('the embedded conversion', () => {
  it('covers every layer', () => {
    expect([...order].sort()).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    const { description, tuned } = student;
    const trainable = Object.keys(description.weights).filter((name) => name.includes(`.${student.mixer.name}.`));
    expect([...tuned.keys()].sort()).toEqual(trainable.sort());
  });

  it.each([0, 1, 2, 3, 4, 5, 6, 7])('layer %d: training and serving give the same', async (layer) => {
    const { device, description, weights, mixer } = student;
    const { segments } = description;
    const at = segments.findIndex(({ name }) => name === `layers.${layer}.project`);
    const [project, attention] = segments.slice(at, at + 2) as [Segment, Segment];
    const tape = joinGraphs([project.versions.default, attention.versions[mixer.name]!], new Set(['o']));
    const x = await before(at);
    const width = x.length / tokens;
    using trained = await device.compileTrainable(tape, weights, []);
    const { o } = trained.forward({ rows: 1, tokens, inputs: { x: f32([tokens, width], x) } });
    using own = o!;
    const wanted = (await device.download(own)).data as Float32Array;
    const got = await served(tape, x, width);
    const square = (of: (index: number) => number) => wanted.reduce((sum, _, index) => sum + of(index) ** 2, 0);
    expect(Math.sqrt(square((i) => got[i]! - wanted[i]!) / square((i) => wanted[i]!))).toBeLessThan(1e-4);
  });
});
