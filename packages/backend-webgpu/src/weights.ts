import { elementCount, type Weight, type WeightSource } from '@dsla/spec';
import type { Memory } from './buffers.js';
import type { Element } from './kernels/kernel.js';
import { bytesOf, type Format, isQuantised, pairsGrid, type Quantised, quantise } from './kernels/quantise.js';
import { paced } from './pace.js';
import type { Pipelines } from './pipelines.js';

interface Shared {
  readonly buffer: Promise<GPUBuffer>;
  users: number;
}

/** Weights on the device, shared by name and format, freed with their last user. */
export class Weights {
  readonly #device: GPUDevice;
  readonly #memory: Memory;
  readonly #pipelines: Pipelines;
  /** What quantised weights are made from. */
  readonly #type: Element;
  readonly #shared = new Map<string, Shared>();

  constructor(device: GPUDevice, memory: Memory, pipelines: Pipelines, type: Element) {
    this.#device = device;
    this.#memory = memory;
    this.#pipelines = pipelines;
    this.#type = type;
  }

  async take(source: WeightSource, name: Weight, type: Format): Promise<GPUBuffer> {
    const key = `${type} ${name}`;
    let shared = this.#shared.get(key);
    if (!shared) {
      shared = { buffer: this.#load(source, name, type), users: 0 };
      this.#shared.set(key, shared);
    }
    shared.users += 1;
    try {
      return await shared.buffer;
    } catch (error) {
      this.#shared.delete(key);
      throw error;
    }
  }

  give(name: Weight, type: Format): void {
    const key = `${type} ${name}`;
    const shared = this.#shared.get(key);
    if (!shared || --shared.users > 0) return;
    this.#shared.delete(key);
    void shared.buffer.then((buffer) => this.#memory.give(buffer));
  }

  async #load(source: WeightSource, name: Weight, type: Format): Promise<GPUBuffer> {
    const count = elementCount(source.spec(name).shape);
    const buffer = this.#memory.take(`weight ${name}`, bytesOf(type, count));
    try {
      if (isQuantised(type)) {
        const plain = await this.#load(source, name, this.#type);
        try {
          await this.#quantise(type, plain, buffer, count);
        } finally {
          this.#memory.give(plain);
        }
        return buffer;
      }
      const { data } = await source.read(name, type);
      await this.#write(buffer, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      return buffer;
    } catch (error) {
      this.#memory.give(buffer);
      throw error;
    }
  }

  async #quantise(format: Quantised, from: GPUBuffer, to: GPUBuffer, count: number): Promise<void> {
    const { pipeline, layout } = await this.#pipelines.get(quantise(format, this.#type, count));
    const entries = [from, to].map((buffer, binding) => ({ binding, resource: { buffer } }));
    const encoder = this.#device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, this.#pipelines.noBatch);
    pass.setBindGroup(1, this.#device.createBindGroup({ layout, entries }));
    pass.dispatchWorkgroups(...pairsGrid(count));
    pass.end();
    this.#device.queue.submit([encoder.finish()]);
  }

  // Dawn copies what it is given: waiting after every piece bounds the copies to one piece.
  async #write(buffer: GPUBuffer, bytes: Uint8Array): Promise<void> {
    const piece = 1 << 26;
    for (let at = 0; at < bytes.byteLength; at += piece) {
      writeBytes(this.#device, buffer, at, bytes.subarray(at, at + piece));
      await paced(() => this.#device.queue.onSubmittedWorkDone());
    }
  }
}

/** writeBuffer for any number of bytes: WebGPU wants a multiple of four. */
export function writeBytes(device: GPUDevice, buffer: GPUBuffer, offset: number, bytes: Uint8Array): void {
  if (bytes.byteLength % 4 === 0) {
    device.queue.writeBuffer(buffer, offset, bytes as Uint8Array<ArrayBuffer>);
    return;
  }
  const padded = new Uint8Array(Math.ceil(bytes.byteLength / 4) * 4);
  padded.set(bytes);
  device.queue.writeBuffer(buffer, offset, padded);
}
