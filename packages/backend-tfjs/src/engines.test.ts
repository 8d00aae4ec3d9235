import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { engineNames, engineObstacles } from './engines.js';
import { tfjsBackend } from './index.js';

describe('engines', () => {
  it('refuses an unknown engine with the list', async () => {
    const options = { extra: { engine: 'cuda' } };
    await expect(tfjsBackend.open(options)).rejects.toThrow(
      'tfjs engine: must be one of tfjs-node-gpu, tfjs-node, webgpu, wasm, cpu, got "cuda".',
    );
    await expect(tfjsBackend.obstacles(options)).rejects.toMatchObject({ code: 'E_INPUT' });
  });

  it('takes the first that works', async () => {
    const working: string[] = [];
    for (const name of engineNames) if ((await engineObstacles(name, false)).length === 0) working.push(name);
    await using device = await tfjsBackend.open();
    expect(device.description).toContain(`engine ${working[0]},`);
    expect(await tfjsBackend.obstacles()).toEqual([]);
  });

  it('is looked for in silence', () => {
    const index = new URL('./index.ts', import.meta.url).href;
    const tsx = pathToFileURL(createRequire(import.meta.url).resolve('tsx')).href;
    const script = `import(${JSON.stringify(index)}).then(({ tfjsBackend }) => tfjsBackend.obstacles())`;
    const args = ['--conditions=@dsla/source', '--import', tsx, '--input-type=module', '--eval', script];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    expect({ status, stdout, stderr }).toEqual({ status: 0, stdout: '', stderr: '' });
  });

  it.each(['tfjs-node-gpu', 'tfjs-node'] as const)(
    '%s: says in a sentence why it cannot run, or runs',
    async (engine) => {
      const options = { extra: { engine } };
      const [reason] = await tfjsBackend.obstacles(options);
      if (reason !== undefined) {
        expect(reason).toMatch(new RegExp(`^${engine}: @tensorflow/${engine} (is not installed; run|does not load)`));
        await expect(tfjsBackend.open(options)).rejects.toMatchObject({ code: 'E_UNAVAILABLE' });
      } else {
        await using device = await tfjsBackend.open(options);
        expect(device.description).toContain(engine);
      }
    },
  );

  it('has no float16', async () => {
    expect(await tfjsBackend.obstacles({ computeType: 'f16' })).toEqual([
      'it computes in float32; leave computeType out or ask for f32',
    ]);
    await expect(tfjsBackend.open({ computeType: 'f16' })).rejects.toMatchObject({ code: 'E_UNAVAILABLE' });
  });

  it('devices on two engines work side by side', async () => {
    await using wasm = await tfjsBackend.open({ extra: { engine: 'wasm' } });
    await using cpu = await tfjsBackend.open({ extra: { engine: 'cpu' } });
    const tensor = { dtype: 'f32', shape: [2], data: Float32Array.of(1, 2) } as const;
    using a = wasm.upload(tensor);
    using b = cpu.upload(tensor);
    expect((await wasm.download(a)).data).toEqual(tensor.data);
    expect((await cpu.download(b)).data).toEqual(tensor.data);
  });
});
