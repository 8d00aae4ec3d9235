import { bytesPerElement, elementCount, type Weight, type WeightSource } from '@dsla/spec';
import type { Memory } from './buffers.js';
import type { Element } from './kernels/kernel.js';

interface Shared {
  readonly buffer: Promise<GPUBuffer>;
  users: number;
}

/** Weights on the device, shared by name and element type, freed with their last user. */
export class Weights {
  readonly #device: GPUDevice;
  readonly #memory: Memory;
  readonly #shared = new Map<string, Shared>();

  constructor(device: GPUDevice, memory: Memory) {
    this.#device = device;
    this.#memory = memory;
  }

  async take(source: WeightSource, name: Weight, type: Element): Promise<GPUBuffer> {
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

  give(name: Weight, type: Element): void {
    const key = `${type} ${name}`;
    const shared = this.#shared.get(key);
    if (!shared || --shared.users > 0) return;
    this.#shared.delete(key);
    void shared.buffer.then((buffer) => this.#memory.give(buffer));
  }

  async #load(source: WeightSource, name: Weight, type: Element): Promise<GPUBuffer> {
    const bytes = elementCount(source.spec(name).shape) * bytesPerElement[type];
    const buffer = this.#memory.take(`weight ${name}`, bytes);
    try {
      const { data } = await source.read(name, type);
      await this.#write(buffer, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      return buffer;
    } catch (error) {
      this.#memory.give(buffer);
      throw error;
    }
  }

  // Dawn copies what it is given: waiting after every piece bounds the copies to one piece.
  async #write(buffer: GPUBuffer, bytes: Uint8Array): Promise<void> {
    const piece = 1 << 26;
    for (let at = 0; at < bytes.byteLength; at += piece) {
      writeBytes(this.#device, buffer, at, bytes.subarray(at, at + piece));
      await this.#device.queue.onSubmittedWorkDone();
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
