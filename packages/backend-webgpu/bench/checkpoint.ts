import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { bindWeights, describe, type ModelDescription, parseConfig } from '@dsla/models';
import { fromFloat16, type HostTensor, type WeightSource } from '@dsla/spec';

// Checkpoints of one file of safetensors, read whole: for small ones.

/** Model and weights of a folder. */
export function modelIn(folder: string): { readonly description: ModelDescription; readonly weights: WeightSource } {
  const description = describe(parseConfig(JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))));
  return { description, weights: bindWeights(description, reader(join(folder, 'model.safetensors'))) };
}

/** All tensors of a file. */
export function tensorsOf(file: string): Map<string, HostTensor> {
  const bytes = readFileSync(file);
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const tensors = new Map<string, HostTensor>();
  for (const [name, entry] of Object.entries(JSON.parse(bytes.toString('utf8', 8, start)))) {
    if (name === '__metadata__') continue;
    const {
      dtype,
      shape,
      data_offsets: at,
    } = entry as {
      dtype: string;
      shape: number[];
      data_offsets: [number, number];
    };
    const data = Uint8Array.from(bytes.subarray(start + at[0], start + at[1])).buffer;
    if (dtype === 'F16') tensors.set(name, { dtype: 'f16', shape, data: new Uint16Array(data) });
    else if (dtype === 'F32') tensors.set(name, { dtype: 'f32', shape, data: new Float32Array(data) });
    else tensors.set(name, { dtype: 'i32', shape, data: new Int32Array(data) });
  }
  return tensors;
}

/** Tensors of float16, or parts of them. */
function reader(file: string): Parameters<typeof bindWeights>[1] {
  const tensors = tensorsOf(file);
  return {
    tensors: new Map([...tensors].map(([name, { dtype, shape }]) => [name, { storage: dtype, shape }])),
    async readFloats(name, { as, index, rows }) {
      const { shape, data: whole } = tensors.get(name)!;
      const row = whole.length / shape[0]!;
      const { start, step } = index === undefined ? (rows ?? { start: 0, step: 1 }) : { start: index, step: shape[0]! };
      const data = (whole as Uint16Array).filter(
        (_, i) => i >= start * row && (Math.floor(i / row) - start) % step === 0,
      );
      return as === 'f16' ? { dtype: 'f16', shape, data } : { dtype: 'f32', shape, data: fromFloat16(data) };
    },
  };
}
