import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { convState, type Device, f32, type LayerGraph, type WeightSource } from '@dsla/spec';
import { describe, expect, it, vi } from 'vitest';
import type { OnnxDevice } from './device.js';
import { onnxBackend } from './index.js';

const bindings = ['c-api', 'node'];

/** x [N, width] through `depth` square matrices that are one number times the identity. */
function scaled(width: number, depth: number, factor: number): { graph: LayerGraph; weights: WeightSource } {
  const linears = Array.from({ length: depth }, (_, x) => ({ op: 'linear', x, weight: 'w' }) as const);
  return {
    graph: {
      name: 'scaled',
      nodes: [{ op: 'input', name: 'x', width }, ...linears, { op: 'output', name: 'y', x: depth }],
      states: [],
    },
    weights: {
      spec: () => ({ storage: 'f32', shape: [width, width] }),
      async read() {
        const data = new Float32Array(width * width);
        for (let i = 0; i < width; i++) data[i * width + i] = factor;
        return f32([width, width], data);
      },
    },
  };
}

async function run(device: Device, width: number, depth: number, rows: number, during?: () => void): Promise<number[]> {
  const { graph, weights } = scaled(width, depth, 0.5);
  using layer = await device.compile(graph, weights);
  using x = device.upload(f32([rows, width], new Float32Array(rows * width).fill(8)));
  using step = device.beginStep({ ids: new Int32Array(rows), rows: [{ slot: 0, past: 0, count: rows }] }, { x });
  step.run(layer, {});
  const submitted = step.submit();
  during?.();
  await submitted;
  return [...((await device.download(step.value('y'))).data as Float32Array).subarray(0, 3)];
}

describe.each(bindings)('binding %s', (binding) => {
  it('computes off the event loop: timers go on during a step', async () => {
    await using device = await onnxBackend.open({ threads: 1, extra: { binding } });
    await run(device, 512, 8, 1); // makes the session
    let ticks = 0;
    let timer: NodeJS.Timeout | undefined;
    await run(device, 512, 40, 2048, () => {
      timer = setInterval(() => {
        ticks += 1;
      }, 1);
    });
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(10);
  });

  it('survives a garbage collection between opening and running', async () => {
    await using device = await onnxBackend.open({ threads: 1, extra: { binding } });
    setFlagsFromString('--expose-gc');
    (runInNewContext('gc') as () => void)();
    expect(await run(device, 8, 2, 3)).toEqual([2, 2, 2]);
  });

  it('says in its description which it is', async () => {
    await using device = await onnxBackend.open({ threads: 1, extra: { binding } });
    expect(device.description).toMatch(/^ONNX Runtime 1\.29\.0, CPU, 1 thread/);
    expect(device.description).toContain(binding === 'node' ? "onnxruntime-node's own binding" : 'C API through koffi');
  });

  it("gives ONNX Runtime's text and the place when a model is refused", async () => {
    await using device = await onnxBackend.open({ threads: 1, extra: { binding } });
    const { binding: inner } = device as OnnxDevice;
    const pack = inner.pack();
    const request = { model: new Uint8Array([1, 2, 3]), constants: new Map(), operators: [], pack, where: 'layers.7' };
    await expect(inner.session(request)).rejects.toMatchObject({
      code: 'E_DEVICE',
      message: expect.stringMatching(/^layers\.7: .*[Pp]rotobuf/),
    });
    pack.dispose();
  });

  it("writes ONNX Runtime's profile where it is told to", async () => {
    const folder = mkdtempSync(join(tmpdir(), 'dsla-onnx-'));
    try {
      const device = await onnxBackend.open({ threads: 1, extra: { binding, profile: join(folder, 'p') } });
      await run(device, 8, 2, 3);
      await device[Symbol.asyncDispose]();
      const events = JSON.parse(readFileSync(join(folder, readdirSync(folder)[0]!), 'utf8')) as { name: string }[];
      expect(events.map(({ name }) => name)).toContain('model_run');
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

describe('device', () => {
  it('gives the same numbers whether matrices are packed or not', async () => {
    for (const prepack of ['on', 'off']) {
      await using device = await onnxBackend.open({ threads: 1, extra: { prepack } });
      expect(await run(device, 48, 3, 2)).toEqual([1, 1, 1]);
    }
  });

  it('serves the same layer for one row, then for more, then for one', async () => {
    await using device = await onnxBackend.open({ threads: 1 });
    const graph: LayerGraph = {
      name: 'table',
      nodes: [
        { op: 'embed', table: 'w' },
        { op: 'output', name: 'y', x: 0 },
      ],
      states: [],
    };
    using layer = await device.compile(graph, scaled(2, 1, 3).weights);
    for (const ids of [[0], [0, 1], [1]]) {
      const rows = ids.map((_, slot) => ({ slot, past: 0, count: 1 }));
      using step = device.beginStep({ ids: Int32Array.from(ids), rows });
      step.run(layer, {});
      await step.submit();
      const { data } = await device.download(step.value('y'));
      expect([...data]).toEqual(ids.flatMap((id) => (id === 0 ? [3, 0] : [0, 3])));
    }
  });

  it('takes no more blocks for a deep tape than for a shallow one', async () => {
    const blocks: number[] = [];
    for (const depth of [3, 12]) {
      await using device = await onnxBackend.open({ threads: 1 });
      const allocate = vi.spyOn((device as OnnxDevice).binding, 'allocate');
      const names = Array.from({ length: depth }, (_, x) => `s${x}`);
      const graph: LayerGraph = {
        name: 'deep',
        nodes: [
          { op: 'input', name: 'x', width: 4 },
          ...names.map((state, x) => ({ op: 'causalConv', x, weight: 'w', state }) as const),
          { op: 'output', name: 'y', x: depth },
        ],
        states: names.map((name) => convState(name, 4, 2)),
      };
      const ones: WeightSource = {
        spec: () => ({ storage: 'f32', shape: [4, 1, 2] }),
        read: async () => f32([4, 1, 2], new Float32Array([0, 1, 0, 1, 0, 1, 0, 1])),
      };
      using layer = await device.compile(graph, ones);
      using x = device.upload(
        f32(
          [5, 4],
          Float32Array.from({ length: 20 }, (_, at) => at),
        ),
      );
      const states = Object.fromEntries(graph.states.map((spec) => [spec.name, device.createState(spec, 1, 8)]));
      using step = device.beginStep({ ids: new Int32Array(5), rows: [{ slot: 0, past: 0, count: 5 }] }, { x });
      step.run(layer, states);
      await step.submit();
      const { data } = await device.download(step.value('y'));
      expect([...data]).toEqual(Array.from({ length: 20 }, (_, at) => at)); // the last tap alone is 1
      blocks.push(allocate.mock.calls.filter(([, where]) => where === 'deep').length);
    }
    expect(blocks[1]).toBe(blocks[0]);
  });

  it('opens beside one with other threads, and beside onnxruntime-node in the same thread', async () => {
    await using first = await onnxBackend.open({ threads: 2 });
    await using second = await onnxBackend.open({ threads: 1 });
    await using third = await onnxBackend.open({ threads: 2, extra: { binding: 'node' } });
    for (const device of [third, second, first]) expect(await run(device, 8, 2, 3)).toEqual([2, 2, 2]);
  });

  it('refuses what it cannot have, with the bytes wanted and free', async () => {
    await using device = await onnxBackend.open({ threads: 1 });
    const part = { name: 'p', dtype: 'f32', shape: [1 << 20, 'tokens'] } as const;
    const error = (() => {
      try {
        device.createState({ name: 's', kind: 'kv', parts: [part] }, 1, 1 << 30);
      } catch (thrown) {
        return thrown;
      }
    })();
    expect(error).toMatchObject({ code: 'E_MEMORY', details: { wanted: 4 * 2 ** 50, free: expect.any(Number) } });
  });

  it('names what is wrong with its options', async () => {
    const sentences = async (options: Parameters<typeof onnxBackend.open>[0]) =>
      (await onnxBackend.obstacles(options)).join('; ');
    expect(await sentences({})).toBe('');
    expect(await sentences({ extra: { binding: 'gpu' } })).toContain('extra.binding must be c-api or node, not gpu');
    expect(await sentences({ extra: { device: 'gpu' } })).toContain('extra.device must be cpu or cuda, not gpu');
    expect(await sentences({ extra: { device: 'cuda', binding: 'node' } })).toContain(
      'extra.binding must be c-api on cuda',
    );
    expect(await sentences({ extra: { prepack: 'no' } })).toContain('extra.prepack must be on or off, not no');
    expect(await sentences({ threads: 0 })).toContain('threads must be an integer of at least 1, not 0');
    expect(await sentences({ computeType: 'f16' })).toContain('on the CPU it computes in float32');
    await expect(onnxBackend.open({ threads: 0 })).rejects.toMatchObject({ code: 'E_UNAVAILABLE' });
  });
});
