import { tfjsBackend } from '@dsla/backend-tfjs';
import { type MixerOptions, planAt } from '@dsla/models';
import { isTrainingDevice } from '@dsla/spec';
import { describe, expect, it } from 'vitest';
import { useSwiftShader } from '../../backend-webgpu/src/swiftshader.js';
import { tinyBase } from '../test/folders.js';
import { data, heldOut, options, recipe } from '../test/tiny.js';
import { fit } from './fit.js';
import { openStudent } from './student.js';
import { logitsTrial, matchTrial } from './trial.js';
import { openWindows } from './windows.js';

// Training on WebGPU, without a GPU: Dawn on SwiftShader, against the wasm engine.

const obstacles = [useSwiftShader() ?? (await tfjsBackend.obstacles({ extra: { engine: 'webgpu' } }))].flat();
const steps = 3;

/** Losses of some steps in one layer, then what the held-out window says. */
async function run(engine: string, base: string, mixer: MixerOptions, stage: 'match' | 'logits'): Promise<number[]> {
  await using device = await tfjsBackend.open({ extra: { engine } });
  expect(device.description).toContain(`engine ${engine},`);
  if (!isTrainingDevice(device)) throw new Error('tfjs must train');
  await using student = await openStudent(base, { device, mixer: { name: 'mixer', options: mixer } });
  const { tokens } = recipe;
  const held = await (await openWindows(heldOut, student.tokenizer, { tokens, seed: 0 })).take(1);
  await using trial = await (stage === 'match'
    ? matchTrial(student, 1, recipe, held)
    : logitsTrial(student, [1], planAt([1, 0], 1, 'mixer', 2), recipe));
  const losses: number[] = [];
  const { best } = await fit(trial, {
    where: 'webgpu',
    windows: await openWindows(data, student.tokenizer, { tokens, seed: 0 }),
    heldOut: held,
    recipe,
    stage: { ...recipe[stage], steps, rows: 1 },
    onStep: ({ loss }) => losses.push(loss),
  });
  return [...losses, best.misfit];
}

describe.skipIf(obstacles.length > 0)(`training on WebGPU${obstacles.map((each) => ` (${each})`).join('')}`, () => {
  it.each<[string, MixerOptions, 'match' | 'logits']>([
    ['foldable, logits', options, 'logits'],
    ['published, match', { kind: 'published' }, 'match'],
  ])('%s: the losses are those of wasm', async (_, mixer, stage) => {
    const base = await tinyBase();
    const want = await run('wasm', base, mixer, stage);
    const got = await run('webgpu', base, mixer, stage);
    expect(got).toHaveLength(steps + 1);
    for (const [at, loss] of got.entries()) expect(Math.abs(loss / want[at]! - 1)).toBeLessThan(1e-3);
  });
});
