import { convState, type Device, f32, type LayerGraph, type Row, type StateStore, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import type { OnnxDevice } from './device.js';
import { onnxBackend } from './index.js';

const [channels, kernel] = [16, 3]; // 128 bytes a state: a multiple of 16, as slots that lie side by side must be

const graph: LayerGraph = {
  name: 'convolution',
  nodes: [
    { op: 'input', name: 'x', width: channels },
    { op: 'causalConv', x: 0, weight: 'w', state: 'c' },
    { op: 'output', name: 'y', x: 1 },
  ],
  states: [convState('c', channels, kernel)],
};
const weights: WeightSource = {
  spec: () => ({ storage: 'f32', shape: [channels, 1, kernel] }),
  read: async () =>
    f32(
      [channels, 1, kernel],
      Float32Array.from({ length: channels * kernel }, (_, at) => (at % kernel) + 1),
    ),
};

/** The value of row `row` in step `past`, the same in all channels. */
const input = (row: number, past: number): number => 1 + row + 10 * past;

/** y[t] = x[t - 2] + 2 x[t - 1] + 3 x[t] */
function want(row: number, past: number): number {
  const at = (token: number): number => (token < 0 ? 0 : input(row, token));
  return at(past - 2) + 2 * at(past - 1) + 3 * at(past);
}

interface Opened {
  readonly device: OnnxDevice;
  readonly runs: { count: number };
  step(slots: readonly number[], past: number): Promise<number[]>;
  readonly store: StateStore;
}

async function opened(binding: string): Promise<Opened & AsyncDisposable> {
  const device = (await onnxBackend.open({ threads: 1, extra: { binding } })) as OnnxDevice;
  const layer = await device.compile(graph, weights);
  const store = device.createState(graph.states[0]!, 8, 0);
  const runs = { count: 0 };
  const make = device.binding.commands.bind(device.binding);
  device.binding.commands = () => {
    const commands = make();
    const run = commands.run.bind(commands);
    commands.run = (...args) => {
      runs.count += 1;
      run(...args);
    };
    return commands;
  };
  return {
    device,
    runs,
    store,
    step: (slots, past) => stepOf(device, layer, store, slots, past),
    [Symbol.asyncDispose]: () => device[Symbol.asyncDispose](),
  };
}

/** The row that belongs to slot s is number s. */
async function stepOf(
  device: Device,
  layer: Parameters<ReturnType<Device['beginStep']>['run']>[0],
  store: StateStore,
  slots: readonly number[],
  past: number,
): Promise<number[]> {
  const data = new Float32Array(slots.length * channels).map((_, at) => input(slots[Math.floor(at / channels)]!, past));
  const rows = slots.map((slot): Row => ({ slot, past, count: 1 }));
  using x = device.upload(f32([slots.length, channels], data));
  using step = device.beginStep({ ids: new Int32Array(slots.length), rows }, { x });
  step.run(layer, { c: store });
  await step.submit();
  const y = (await device.download(step.value('y'))).data;
  return slots.map((_, row) => Number(y[row * channels]));
}

describe('rows of one token whose slots lie side by side', () => {
  it.each([
    ['c-api', [2, 3, 4, 5], 1],
    ['c-api', [2, 3, 5, 4], 3],
    ['c-api', [0, 1, 6, 7], 2],
    ['node', [2, 3, 4, 5], 4],
  ] as const)('binding %s, slots %j: %i runs', async (binding, slots, count) => {
    await using model = await opened(binding);
    for (let past = 0; past < 4; past++)
      expect(await model.step(slots, past)).toEqual(slots.map((slot) => want(slot, past)));
    model.runs.count = 0;
    await model.step([...slots], 4);
    await model.step([slots[0]!], 5);
    expect(model.runs.count).toBe(count + 1);
  });

  it('a slot that is cleared while a step runs starts afresh, its neighbours go on', async () => {
    await using model = await opened('c-api');
    const slots = [0, 1, 2];
    for (const past of [0, 1]) await model.step(slots, past);
    const running = model.step(slots, 2);
    model.store.clear(1);
    const after = model.step([1], 0);
    expect(await running).toEqual(slots.map((slot) => want(slot, 2)));
    expect(await after).toEqual([want(1, 0)]);
    expect(await model.step([0, 2], 3)).toEqual([want(0, 3), want(2, 3)]);
    expect(await model.step([1], 1)).toEqual([want(1, 1)]);
    const held = model.store.bytes;
    model.store.clear(0);
    expect(model.store.bytes).toBe((held * 2) / 3);
    model.store[Symbol.dispose]();
    expect(model.device.memory().bytes).toBe(4 * channels * kernel); // the weights
  });
});
