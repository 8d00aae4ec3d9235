import { convState, f32, kvState, type LayerGraph, type WeightSource } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { findAdapter, loadGpu, must } from './adapter.js';
import { Memory } from './buffers.js';
import { openGpu } from './device.js';
import { webgpuBackend } from './index.js';
import { WebgpuState } from './state.js';
import { useSwiftShader } from './swiftshader.js';

const obstacle = useSwiftShader();
const software = { software: 'allow' };

describe.skipIf(obstacle)(`the device${obstacle ? ` (${obstacle})` : ''}`, () => {
  it('takes a software adapter only when asked', async () => {
    const obstacles = await webgpuBackend.obstacles();
    expect(obstacles.join(' ')).toMatch(/only WebGPU adapter is software \(SwiftShader.*software: 'allow'/);
    await expect(webgpuBackend.open()).rejects.toMatchObject({ code: 'E_UNAVAILABLE' });
    expect(await webgpuBackend.obstacles({ extra: software })).toEqual([]);
  });

  it('says that float16 is missing', async () => {
    const options = { computeType: 'f16', extra: software } as const;
    expect((await webgpuBackend.obstacles(options)).join(' ')).toMatch(/no shader-f16/);
  });

  it('names the adapter and what it computes in', async () => {
    await using device = await webgpuBackend.open({ extra: software });
    expect(device.description).toMatch(/WebGPU.*SwiftShader.*f32/);
    expect(device.capabilities.computeType).toBe('f32');
  });

  it('refuses a store beyond its memory with the bytes wanted and free', async () => {
    await using device = await webgpuBackend.open({ extra: { ...software, memory: '1000000' } });
    const spec = kvState('kv', { kvHeads: 4, headDim: 64 });
    const start = device.memory();
    expect(() => device.createState(spec, 4, 1000)).toThrow(
      expect.objectContaining({ code: 'E_MEMORY', details: expect.objectContaining({ wanted: 4096000 }) }),
    );
    expect(() => device.createState(spec, 1_000_000, 1_000_000)).toThrow(expect.objectContaining({ code: 'E_MEMORY' }));
    expect(device.memory()).toEqual(start);
    using store = device.createState(spec, 1, 100);
    expect(store.bytes).toBe(2 * 4 * 100 * 64 * 4);
  });

  it('keeps float16 slots of an odd number of elements apart', async () => {
    // The software adapter has no float16 in kernels, but its buffers hold it.
    const options = { extra: software };
    const adapter = must(await findAdapter(must(await loadGpu(options)), options));
    const { device } = await openGpu(adapter, options);
    const memory = new Memory(device, Number.POSITIVE_INFINITY, () => undefined);
    const host = { device, memory, check: () => undefined };
    using store = new WebgpuState(host, convState('conv', 5, 4), 3, 0, 'f16');
    const [first, second, third] = [1, 2, 3].map((value) => f32([5, 3], new Float32Array(15).fill(value)));
    store.import(2, [third!]);
    store.import(0, [first!]);
    store.import(1, [second!]);
    expect(await store.export(0)).toEqual([first]);
    store.copy(1, 0);
    store.clear(1);
    expect(await store.export(0)).toEqual([second]);
    expect(await store.export(1)).toEqual([f32([5, 3], new Float32Array(15))]);
    expect(await store.export(2)).toEqual([third]);
    device.destroy();
  });

  it('does not settle `lost` when it is disposed', async () => {
    const device = await webgpuBackend.open({ extra: software });
    await device[Symbol.asyncDispose]();
    const later = new Promise((resolve) => setTimeout(resolve, 20, 'not lost'));
    expect(await Promise.race([device.lost, later])).toBe('not lost');
  });

  it('records a step before the last one is back', async () => {
    await using device = await webgpuBackend.open({ extra: software });
    const graph: LayerGraph = {
      name: 'double',
      states: [],
      nodes: [
        { op: 'input', name: 'x', width: 3 },
        { op: 'add', a: 0, b: 0 },
        { op: 'output', name: 'x', x: 1 },
      ],
    };
    const none: WeightSource = {
      spec: (name) => {
        throw new Error(name);
      },
      read: async (name) => {
        throw new Error(name);
      },
    };
    using layer = await device.compile(graph, none);
    const batch = { ids: new Int32Array(1), rows: [{ slot: 0, past: 0, count: 1 }] };
    const run = async (value: number) => {
      using x = device.upload(f32([1, 3], new Float32Array(3).fill(value)));
      using step = device.beginStep(batch, { x });
      step.run(layer, {});
      step.run(layer, {});
      const submitted = step.submit();
      const { data } = await device.download(step.value('x'));
      await submitted;
      return [...data];
    };
    const results = await Promise.all([1, 2, 3].map(run));
    expect(results).toEqual([4, 8, 12].map((value) => [value, value, value]));
  });
});
