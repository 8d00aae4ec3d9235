import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { loadGpu, must } from './adapter.js';
import { workgroupMemory } from './kernel-runner.js';
import { copy } from './kernels/elementwise.js';
import { useSwiftShader } from './swiftshader.js';
import { contests, decide, fastest, tune, tuned } from './tune.js';
import { type Choice, readTuning, tunedTraits, writeTuning } from './tuning.js';

const folder = mkdtempSync(join(tmpdir(), 'dsla-tune-'));
afterAll(() => rmSync(folder, { recursive: true }));

const matrices = { type: 'f16', lanes: 32, matrices: true } as const;
const choices: Choice[] = [
  {
    kernel: 'linear-matrix',
    chosen: '256x128, 32 deep',
    milliseconds: { '128x128, 32 deep': 2, '256x128, 32 deep': 1 },
  },
  {
    kernel: 'tile-attention',
    chosen: '16 queries',
    milliseconds: { '32 queries': 2, '16 queries': 1.5 },
  },
];

describe('choices', () => {
  it('are kept for each device', () => {
    const file = join(folder, 'deep', 'kept.json');
    expect(readTuning('a', file)).toEqual([]);
    writeTuning('a', choices, file);
    writeTuning('b', choices.slice(1), file);
    expect(readTuning('a', file)).toEqual(choices);
    expect(readTuning('b', file)).toEqual(choices.slice(1));
    expect(readTuning('c', file)).toEqual([]);
  });

  it.each([
    ['no JSON', '{'],
    ['another version', '{ "version": 2, "devices": {} }'],
    ['another thing', '{ "version": 1, "devices": { "a": [{ "kernel": 1 }] } }'],
  ])('in a file that is %s are ignored with a warning, and replaced', async (name, text) => {
    const file = join(folder, `${name}.json`);
    writeFileSync(file, text);
    const warned = new Promise<Error>((resolve) => process.once('warning', resolve));
    expect(readTuning('a', file)).toEqual([]);
    expect((await warned).message).toMatch(/must hold choices of tune\(\).*ignored/);
    writeTuning('a', choices, file);
    expect(JSON.parse(readFileSync(file, 'utf8')).devices.a).toEqual(choices);
  });

  it('mean cuts of kernels; unknown names mean nothing', () => {
    expect(tunedTraits(choices)).toMatchObject({
      product: { items: 256, outputs: 128, depth: 32 },
      attention: { queries: 16 },
    });
    expect(tunedTraits([{ kernel: 'linear-matrix', chosen: 'of old', milliseconds: {} }])).toEqual({});
  });

  it('fall on the first of the fastest', () => {
    expect(fastest({ a: 3, b: 1, c: 1 })).toBe('b');
  });
});

describe('tuning', () => {
  it('has candidates that are valid, fit the workgroup memory and have a meaning', async () => {
    const gpu = must(await loadGpu({ extra: { backend: 'null' } }));
    const features = ['shader-f16', 'subgroups', 'chromium-experimental-subgroup-matrix'];
    const requiredFeatures = features as unknown as GPUFeatureName[];
    const device = await (await gpu.requestAdapter())!.requestDevice({ requiredFeatures });
    for (const { kernel, candidates } of contests(matrices))
      for (const { name, code } of candidates) {
        device.pushErrorScope('validation');
        device.createShaderModule({ code: code.code });
        expect(await device.popErrorScope(), name).toBeNull();
        expect(workgroupMemory(code), name).toBeLessThanOrEqual(49152);
        expect(Object.keys(tunedTraits([{ kernel, chosen: name, milliseconds: {} }])), name).toHaveLength(1);
      }
    device.destroy();
    expect(contests({ ...matrices, matrices: false })).toEqual([]);
  });

  const obstacle = useSwiftShader();
  it.skipIf(obstacle)(
    `chooses nothing where there are no subgroup matrices${obstacle ? ` (${obstacle})` : ''}`,
    async () => {
      const file = join(folder, 'none.json');
      const options = { extra: { software: 'allow' } };
      expect(await tune(options, file)).toEqual([]);
      expect(existsSync(file)).toBe(false);
      expect(await tuned(options, file)).toEqual([]);
    },
  );

  it.skipIf(obstacle)('times every candidate', async () => {
    const device = await (await must(await loadGpu()).requestAdapter())!.requestDevice();
    const numbers = { width: 1, type: 'f32' } as const;
    const code = copy('token', numbers, numbers);
    const candidates = [1, 16].map((groups) => ({ name: `${groups} groups`, code, grid: [groups, 1, 1] as const }));
    const contest = { kernel: 'copy', candidates, buffers: [16384, 16384] };
    const { kernel, chosen, milliseconds } = await decide(device, contest, 0);
    expect(kernel).toBe('copy');
    expect(Object.keys(milliseconds)).toEqual(['1 groups', '16 groups']);
    expect(Object.values(milliseconds).every((time) => time > 0 && time < Number.POSITIVE_INFINITY)).toBe(true);
    expect(milliseconds[chosen]).toBe(Math.min(...Object.values(milliseconds)));
    device.destroy();
  });
});
