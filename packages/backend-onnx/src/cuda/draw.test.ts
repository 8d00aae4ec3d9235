import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { referenceBackend } from '@dsla/reference';
import { type Draw, f32, fromFloat16, type LayerGraph, type StepBatch, toFloat16 } from '@dsla/spec';
import { afterAll, describe, expect, it } from 'vitest';
import { emulated, runs, withWhat } from '../../test/emulate.js';
import { settingsOf } from '../draw.js';
import { drawOperator } from './draw.js';

const vocabulary = 3001;
const head: LayerGraph = {
  name: 'head',
  nodes: [
    { op: 'input', name: 'x', width: vocabulary },
    { op: 'lastToken', x: 0 },
    { op: 'output', name: 'logits', x: 1 },
  ],
  states: [],
};

/** Logits as float16 holds them; `put`: some of them. */
function row(seed: number, ...put: readonly (readonly [number, number])[]): number[] {
  const logits = Float32Array.from({ length: vocabulary }, (_, at) => 4 * Math.sin(at * seed) + 3 * Math.cos(at * 7.7));
  for (const [at, value] of put) logits[at] = value;
  return [...fromFloat16(toFloat16(logits))];
}

/** The definition's tokens. */
async function defined(rows: readonly (readonly number[])[], draws: readonly Draw[]): Promise<number[]> {
  await using device = await referenceBackend.open();
  using layer = await device.compile(head, {
    spec: () => ({ storage: 'f32', shape: [] }),
    read: async () => f32([], new Float32Array(1)),
  });
  using x = device.upload(f32([rows.length, vocabulary], Float32Array.from(rows.flat())));
  const batch: StepBatch = {
    ids: new Int32Array(rows.length),
    rows: rows.map((_, slot) => ({ slot, past: 0, count: 1 })),
  };
  using step = device.beginStep(batch, { x });
  step.run(layer, {});
  step.draw!(draws);
  await step.submit();
  return [...(await device.download(step.value('ids'))).data];
}

describe.skipIf(!runs)(`the kernel that draws tokens (${withWhat})`, () => {
  const folder = mkdtempSync(join(tmpdir(), 'dsla-draw-'));
  afterAll(() => rmSync(folder, { recursive: true }));
  const operator = { ...drawOperator(vocabulary), inputNames: ['logits', 'settings'], outputNames: ['ids'] };
  const run = runs ? emulated(operator, folder) : undefined;

  function drawn(rows: readonly (readonly number[])[], draws: readonly Draw[]): number[] {
    const ids = new Int32Array(rows.length).fill(-2);
    const logits = toFloat16(Float32Array.from(rows.flat()));
    run!({ logits, settings: settingsOf(draws, vocabulary), ids }, { rows: rows.length });
    return [...ids];
  }

  it('takes the first of the largest at temperature 0, and -1 where a logit is not a number', async () => {
    const rows = [
      row(1.7, [2999, 9]),
      row(0.3, [5, 9], [1029, 9], [1028, 9]),
      new Array<number>(vocabulary).fill(Number.NEGATIVE_INFINITY),
      row(2.1, [0, Number.POSITIVE_INFINITY]),
      row(0.77),
    ];
    const greedy = { temperature: 0, uniform: 0.5 };
    const got = drawn(
      rows,
      rows.map(() => greedy),
    );
    expect(got.slice(0, 4)).toEqual([2999, 5, 0, 0]);
    expect(got).toEqual(
      await defined(
        rows,
        rows.map(() => greedy),
      ),
    );
    const broken = [row(0.9, [17, Number.NaN], [3, 9]), row(0.9, [3000, Number.NaN])];
    expect(drawn(broken, [greedy, { temperature: 1, uniform: 0 }])).toEqual([-1, -1]);
  });

  it.each<[string, Omit<Draw, 'uniform'>]>([
    ['temperature', { temperature: 1 }],
    ['temperature and k', { temperature: 0.7, topK: 40 }],
    ['p', { temperature: 1.3, topP: 0.6 }],
    ['k, then p of what is left', { temperature: 2, topK: 400, topP: 0.8 }],
    ['a p that one token reaches, a k of more than all', { temperature: 0.5, topK: 1e6, topP: 1e-9 }],
  ])("takes the reference's tokens: %s", async (_, options) => {
    const uniforms = [0, 0.21, 0.34, 0.77, 0.999_999];
    const draws = (shift: number): Draw[] =>
      uniforms.map((uniform) => ({ ...options, uniform: Math.min(Math.max(uniform + shift, 0), 1 - 2 ** -24) }));
    const rows = uniforms.map((_, at) => row(1.1 + at, [at, Number.NEGATIVE_INFINITY], [100 + at, 7], [200, 7]));
    const got = drawn(rows, draws(0));
    const [below, want, above] = [
      await defined(rows, draws(-2e-5)),
      await defined(rows, draws(0)),
      await defined(rows, draws(2e-5)),
    ];
    // Rounding may take the neighbour where a uniform lies on the border between two tokens.
    const sure = want.flatMap((id, at) => (below[at] === id && above[at] === id ? [at] : []));
    expect(sure.length).toBeGreaterThan(uniforms.length / 2);
    expect(sure.map((at) => got[at])).toEqual(sure.map((at) => want[at]));
    for (const [at, id] of got.entries()) expect([below[at], want[at], above[at]]).toContain(id);
  });

  it('keeps equals of the last of k and of p, zeros of both signs too', async () => {
    const uniforms = [0, 0.34, 0.67, 0.999];
    const rows = uniforms.map(() => {
      const logits = new Array<number>(vocabulary).fill(-9);
      logits[3] = 0;
      logits[1500] = -0;
      logits[3000] = 0;
      return logits;
    });
    for (const cut of [{ topK: 2 }, { topP: 0.4 }]) {
      const draws = uniforms.map((uniform) => ({ temperature: 0.5, uniform, ...cut }));
      expect(drawn(rows, draws)).toEqual([3, 1500, 3000, 3000]);
      expect(await defined(rows, draws)).toEqual([3, 1500, 3000, 3000]);
    }
  });
});
