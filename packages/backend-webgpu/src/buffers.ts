import { DslaError } from '@dsla/spec';
import { paced } from './pace.js';

// WebGPU's GPUBufferUsage flags.
const storage = 0x80;
const copySource = 4;
const copyTarget = 8;
const mapRead = 1;

/** Largest buffer for reads that is kept, in bytes. */
const keptStaging = 2 ** 23;

/** Every buffer of a device: counted, refused beyond the limit, destroyed only when no recorded step can name it. */
export class Memory {
  buffers = 0;
  bytes = 0;
  readonly #device: GPUDevice;
  readonly #limit: number;
  readonly #fail: (error: Error) => void;
  readonly #retired: GPUBuffer[] = [];
  /** For reads, a few at most, on the host. */
  readonly #staging: GPUBuffer[] = [];
  /** Copies on the host of buffers that no later work changes. */
  readonly #copies = new Map<GPUBuffer, GPUBuffer>();
  #recording = 0;

  /** `limit`: bytes that may be held; `fail` hears of an allocation that the driver refused later. */
  constructor(device: GPUDevice, limit: number, fail: (error: Error) => void) {
    this.#device = device;
    this.#limit = limit;
    this.#fail = fail;
  }

  /** Bytes of the largest buffer. */
  get largest(): number {
    const { maxBufferSize, maxStorageBufferBindingSize } = this.#device.limits;
    return Math.min(maxBufferSize, maxStorageBufferBindingSize);
  }

  /** Zeros. @throws DslaError E_MEMORY */
  take(where: string, bytes: number): GPUBuffer {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    const { largest } = this;
    if (!(size <= largest)) throw outOfMemory(where, size, largest, 'the largest buffer of this device');
    if (this.bytes + size > this.#limit) throw outOfMemory(where, size, this.#limit - this.bytes, 'free');
    this.#device.pushErrorScope('out-of-memory');
    const buffer = this.#device.createBuffer({ label: where, size, usage: storage | copySource | copyTarget });
    this.#device.popErrorScope().then(
      (error) => error && this.#fail(outOfMemory(where, size, undefined, 'unknown')),
      () => undefined, // the device is gone: `lost` says so
    );
    this.buffers += 1;
    this.bytes += size;
    return buffer;
  }

  give(buffer: GPUBuffer): void {
    this.buffers -= 1;
    this.bytes -= buffer.size;
    if (this.#recording === 0) buffer.destroy();
    else this.#retired.push(buffer);
  }

  /** A step begins to name buffers; until as many ends, none is destroyed. */
  beginRecording(): void {
    this.#recording += 1;
  }

  endRecording(): void {
    this.#recording -= 1;
    if (this.#recording > 0) return;
    for (const buffer of this.#retired.splice(0)) buffer.destroy();
  }

  /** Records a copy of a buffer that the next read of it takes: a read of its own is a submit of its own. */
  copy(encoder: GPUCommandEncoder, buffer: GPUBuffer, bytes: number): void {
    const size = Math.ceil(bytes / 4) * 4;
    const staging = this.#stage(size);
    encoder.copyBufferToBuffer(buffer, 0, staging, 0, size);
    this.#copies.set(buffer, staging);
  }

  /** A copy that nobody has read. */
  dropCopy(buffer: GPUBuffer): void {
    const copy = this.#copies.get(buffer);
    this.#copies.delete(buffer);
    if (copy) this.#unstage(copy);
  }

  /** Bytes of a buffer as they are after everything submitted so far. */
  async read(buffer: GPUBuffer, offset: number, bytes: number): Promise<ArrayBuffer> {
    const size = Math.ceil(bytes / 4) * 4;
    const copy = offset === 0 ? this.#copies.get(buffer) : undefined;
    const staging = copy ?? this.#stage(size);
    if (copy) this.#copies.delete(buffer);
    else {
      const encoder = this.#device.createCommandEncoder();
      encoder.copyBufferToBuffer(buffer, offset, staging, 0, size);
      this.#device.queue.submit([encoder.finish()]);
    }
    try {
      await paced(() => staging.mapAsync(1, 0, Math.max(size, 4)));
      return staging.getMappedRange(0, Math.max(size, 4)).slice(0, bytes);
    } finally {
      staging.unmap();
      this.#unstage(staging);
    }
  }

  #stage(bytes: number): GPUBuffer {
    const index = this.#staging.findIndex((free) => free.size >= bytes);
    if (index >= 0) return this.#staging.splice(index, 1)[0]!;
    const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, 256)));
    return this.#device.createBuffer({ label: 'read', size, usage: mapRead | copyTarget });
  }

  #unstage(staging: GPUBuffer): void {
    if (staging.size <= keptStaging && this.#staging.length < 4) this.#staging.push(staging);
    else staging.destroy();
  }
}

/** Free buffers of one purpose, handed out last in first out, so that bind groups stay valid from step to step. */
export class Pool implements Disposable {
  readonly #memory: Memory;
  readonly #free = new Map<string, GPUBuffer[]>();

  constructor(memory: Memory) {
    this.#memory = memory;
  }

  /** At least `bytes`; a power of two, so that a few sizes serve all lengths. */
  take(name: string, bytes: number): GPUBuffer {
    const list = this.#free.get(name) ?? [];
    const index = list.findLastIndex((buffer) => buffer.size >= bytes);
    if (index >= 0) return list.splice(index, 1)[0]!;
    const small = list.pop();
    if (small) this.#memory.give(small);
    return this.#memory.take(name, 2 ** Math.ceil(Math.log2(Math.max(bytes, 64))));
  }

  give(name: string, buffer: GPUBuffer): void {
    const list = this.#free.get(name);
    if (list) list.push(buffer);
    else this.#free.set(name, [buffer]);
  }

  /** Bytes and buffers that nobody holds. */
  idle(): { buffers: number; bytes: number } {
    const all = [...this.#free.values()].flat();
    return { buffers: all.length, bytes: all.reduce((sum, { size }) => sum + size, 0) };
  }

  [Symbol.dispose](): void {
    for (const list of this.#free.values()) for (const buffer of list.splice(0)) this.#memory.give(buffer);
  }
}

function outOfMemory(where: string, wanted: number, free: number | undefined, of: string): DslaError {
  return new DslaError('E_MEMORY', {
    where: `${where} on webgpu`,
    rule: `must fit the memory of the device: ${free ?? 'an unknown number of'} bytes are ${of}`,
    got: `${wanted} bytes`,
    cure: 'Lower the number of slots or their capacity, or free other models.',
    details: { wanted, free },
  });
}
