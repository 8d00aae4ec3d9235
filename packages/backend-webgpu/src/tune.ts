import type { OpenOptions } from '@dsla/spec';
import { findAdapter, loadGpu, must } from './adapter.js';
import { Memory, Pool } from './buffers.js';
import type { Traits } from './builder.js';
import { openGpu } from './device.js';
import { attentionCuts } from './kernels/flash-attention.js';
import type { Grid, Kernel } from './kernels/kernel.js';
import { linearMatrix, matrixGroups, matrixShapes } from './kernels/linear-matrix.js';
import { tileAttention } from './kernels/tile-attention.js';
import { Pipelines } from './pipelines.js';
import { type Choice, deviceKey, kernels, readTuning, tuningFile, writeTuning } from './tuning.js';
import { Views } from './view.js';

/** Ways to cut one kernel, that do the same on the same buffers. */
export interface Contest {
  readonly kernel: string;
  readonly candidates: readonly Candidate[];
  /** Bytes of the buffers; those of `info` hold the number of tokens. */
  readonly buffers: readonly (number | 'info')[];
}

interface Candidate {
  readonly name: string;
  readonly code: Kernel;
  readonly grid: Grid;
}

// A prefill of a model of seven billion weights.
const [tokens, heads, headDim] = [4096, 32, 128];
const width = heads * headDim;

/**
 * Times the ways to cut the kernels of a prefill on the device that `open` takes with these options, a few seconds, and keeps
 * the fastest in a file of the user's cache folder: devices opened from then on use them. Nothing is chosen, and the list is
 * empty, where a device has no subgroup matrices.
 *
 * @throws DslaError E_UNAVAILABLE where there is no device
 */
export async function tune(options: OpenOptions = {}, file: string = tuningFile()): Promise<readonly Choice[]> {
  const adapter = must(await findAdapter(must(await loadGpu(options)), options));
  const key = deviceKey(adapter.info);
  const { device, traits } = await openGpu(adapter, options);
  const choices: Choice[] = [];
  for (const contest of contests(traits)) choices.push(await decide(device, contest));
  device.destroy();
  if (choices.length > 0) writeTuning(key, choices, file);
  return choices;
}

/** What `tune` has chosen for the device that `open` takes with these options; nothing if there is none. */
export async function tuned(options: OpenOptions = {}, file: string = tuningFile()): Promise<readonly Choice[]> {
  const gpu = await loadGpu(options);
  if ('obstacle' in gpu) return [];
  const adapter = await findAdapter(gpu.value, options);
  return 'obstacle' in adapter ? [] : readTuning(deviceKey(adapter.value.info), file);
}

/** What a device has a choice of. */
export function contests({ matrices }: Traits): readonly Contest[] {
  if (!matrices) return [];
  const half = { width, type: 'f16' } as const;
  const bytes = 2 * tokens * width;
  const attention = { heads, kvHeads: heads, headDim, scale: headDim ** -0.5 };
  return [
    {
      kernel: kernels.product,
      candidates: Object.entries(matrixShapes).map(([name, shape]) => {
        const grid = matrixGroups(tokens, width, shape);
        return { name, code: linearMatrix('token', half, half, { bias: false }, shape), grid };
      }),
      buffers: [bytes, 2 * width * width, bytes],
    },
    {
      kernel: kernels.attention,
      candidates: Object.entries(attentionCuts).map(([name, cut]) => {
        return { name, code: tileAttention(attention, cut), grid: [tokens / 64, heads, 1] };
      }),
      buffers: [bytes, bytes, bytes, 'info', bytes],
    },
  ];
}

/** Times the candidates in turns, after so many milliseconds of work: clocks rise under load only. */
export async function decide(
  device: GPUDevice,
  { kernel, candidates, buffers }: Contest,
  warm = 2000,
): Promise<Choice> {
  const pipelines = new Pipelines(device);
  const memory = new Memory(device, Number.POSITIVE_INFINITY, (error) => {
    throw error;
  });
  const batch = { ids: new Int32Array(tokens), rows: [{ slot: 0, past: 0, count: tokens }] };
  const { group } = new Views(device, pipelines.batchLayout, new Pool(memory), batch).step();
  const taken = buffers.map((bytes) => noise(device, memory.take('tune', bytes === 'info' ? 16 : bytes)));
  buffers.forEach((bytes, index) => {
    if (bytes === 'info') device.queue.writeBuffer(taken[index]!, 0, new Uint32Array([tokens]));
  });
  const entries = taken.map((buffer, binding) => ({ binding, resource: { buffer } }));
  const ready = await Promise.all(
    candidates.map(async ({ name, code, grid }) => {
      const { pipeline, layout } = await pipelines.get(code);
      return { name, pipeline, grid, own: device.createBindGroup({ layout, entries }) };
    }),
  );
  const run = async ({ pipeline, grid, own }: (typeof ready)[number]): Promise<number> => {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group);
    pass.setBindGroup(1, own);
    for (let n = 0; n < dispatches; n++) pass.dispatchWorkgroups(...grid);
    pass.end();
    const start = performance.now();
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    return (performance.now() - start) / dispatches;
  };
  for (const start = performance.now(); performance.now() - start < warm; ) await run(ready[0]!);
  const milliseconds = Object.fromEntries(ready.map(({ name }) => [name, Number.POSITIVE_INFINITY]));
  for (let round = 0; round < rounds; round++)
    for (const one of ready) milliseconds[one.name] = Math.min(milliseconds[one.name]!, await run(one));
  for (const buffer of taken) memory.give(buffer);
  return { kernel, chosen: fastest(milliseconds), milliseconds };
}

const [dispatches, rounds] = [8, 5];

/** The first of those with the least time. */
export function fastest(milliseconds: Readonly<Record<string, number>>): string {
  return Object.entries(milliseconds).reduce((best, one) => (one[1] < best[1] ? one : best))[0];
}

/** Small halves that repeat: zeros would be faster than real data. */
function noise(device: GPUDevice, buffer: GPUBuffer): GPUBuffer {
  let state = 1;
  const words = Uint16Array.from({ length: Math.min(buffer.size, 1 << 20) / 2 }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 16) & 0xa7ff; // a sign, at most 2^-5
  });
  for (let at = 0; at < buffer.size; at += words.byteLength) device.queue.writeBuffer(buffer, at, words);
  return buffer;
}
