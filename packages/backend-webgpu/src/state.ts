import {
  bytesPerElement,
  checkStateContent,
  checkStateSize,
  DslaError,
  type DType,
  elementCount,
  fromFloat16,
  type HostTensor,
  partShape,
  type StateSpec,
  type StateStore,
  stateCapacity,
  toFloat16,
} from '@dsla/spec';
import { disposed, invalid } from './buffer.js';
import type { Memory } from './buffers.js';
import type { Element } from './kernels/kernel.js';
import { writeBytes } from './weights.js';

interface Part {
  readonly buffer: GPUBuffer;
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Bytes of one slot, and from slot to slot. */
  readonly bytes: number;
  readonly stride: number;
}

/** What a store needs of its device. */
export interface StateHost {
  readonly device: GPUDevice;
  readonly memory: Memory;
  /** @throws DslaError when the device is gone */
  check(where: string): void;
}

/** Bytes that a copy moves at a time. */
const piece = 1 << 24;

/** Every part is one buffer [slots, ...shape], taken at once. */
export class WebgpuState implements StateStore {
  readonly spec: StateSpec;
  readonly slots: number;
  readonly tokens: number;
  readonly parts: readonly Part[];
  /** [1] u32: tokens */
  readonly info: GPUBuffer;
  readonly #host: StateHost;
  readonly #fitting = new WeakSet<StateSpec>();
  #disposed = false;

  constructor(host: StateHost, spec: StateSpec, slots: number, tokens: number, type: Element) {
    checkStateSize(spec, slots, tokens);
    this.spec = spec;
    this.slots = slots;
    this.tokens = tokens;
    this.#host = host;
    const taken: GPUBuffer[] = [];
    const take = (where: string, bytes: number): GPUBuffer => {
      const buffer = host.memory.take(`createState ${spec.name}.${where}`, bytes);
      taken.push(buffer);
      return buffer;
    };
    try {
      this.parts = spec.parts.map((part) => {
        const dtype = part.dtype === 'compute' ? type : part.dtype;
        const shape = partShape(part, tokens);
        const bytes = elementCount(shape) * bytesPerElement[dtype];
        // Kernels of the other kinds find a slot by the size of the one before.
        const stride = spec.kind === 'conv' ? Math.ceil(bytes / 4) * 4 : bytes;
        if (stride % 4 !== 0)
          throw new DslaError('E_UNSUPPORTED', {
            where: `createState ${spec.name}.${part.name} on webgpu`,
            rule: 'a slot must take a multiple of 4 bytes',
            got: stride,
            cure: "Open the device with computeType 'f32'.",
          });
        return { buffer: take(part.name, stride * slots), dtype, shape, bytes, stride };
      });
      this.info = take('info', 4);
    } catch (error) {
      for (const buffer of taken) host.memory.give(buffer);
      throw error;
    }
    host.device.queue.writeBuffer(this.info, 0, new Uint32Array([tokens]));
  }

  get bytes(): number {
    return this.#disposed ? 0 : this.slots * this.parts.reduce((sum, { stride }) => sum + stride, 0);
  }

  /** Longest row, in tokens: Infinity where the state does not grow with them. */
  get capacity(): number {
    return stateCapacity(this.spec, this.tokens);
  }

  /** Whether it holds what a tape wants; the answer for a spec is worked out once. */
  fits(spec: StateSpec): boolean {
    if (spec === this.spec || this.#fitting.has(spec)) return true;
    if (JSON.stringify(spec.parts) !== JSON.stringify(this.spec.parts)) return false;
    this.#fitting.add(spec);
    return true;
  }

  /** @throws DslaError E_DISPOSED, E_INPUT, or what the device died of */
  check(...slots: readonly number[]): void {
    const where = `state ${this.spec.name}`;
    if (this.#disposed) throw disposed(where);
    this.#host.check(where);
    for (const slot of slots) {
      if (!(Number.isInteger(slot) && slot >= 0 && slot < this.slots))
        throw invalid(where, `slot must be an integer in 0..${this.slots - 1}`, slot);
    }
  }

  clear(slot: number): void {
    this.check(slot);
    const encoder = this.#host.device.createCommandEncoder();
    for (const { buffer, stride } of this.parts) encoder.clearBuffer(buffer, slot * stride, stride);
    this.#host.device.queue.submit([encoder.finish()]);
  }

  copy(from: number, to: number): void {
    this.check(from, to);
    if (from === to) return;
    // Through a staging buffer: WebGPU copies no buffer onto itself.
    const size = Math.min(piece, Math.max(...this.parts.map(({ stride }) => stride)));
    const staging = this.#host.memory.take(`copy of state ${this.spec.name}`, size);
    const encoder = this.#host.device.createCommandEncoder();
    for (const { buffer, stride } of this.parts) {
      for (let at = 0; at < stride; at += size) {
        const bytes = Math.min(size, stride - at);
        encoder.copyBufferToBuffer(buffer, from * stride + at, staging, 0, bytes);
        encoder.copyBufferToBuffer(staging, 0, buffer, to * stride + at, bytes);
      }
    }
    this.#host.device.queue.submit([encoder.finish()]);
    this.#host.memory.give(staging);
  }

  async export(slot: number): Promise<readonly HostTensor[]> {
    this.check(slot);
    return await Promise.all(
      this.parts.map(async ({ buffer, dtype, shape, bytes, stride }): Promise<HostTensor> => {
        const content = await this.#host.memory.read(buffer, slot * stride, bytes);
        if (dtype === 'f32') return { dtype, shape, data: new Float32Array(content) };
        if (dtype === 'f16') return { dtype: 'f32', shape, data: fromFloat16(new Uint16Array(content)) };
        return { dtype, shape, data: dtype === 'i32' ? new Int32Array(content) : new Uint32Array(content) };
      }),
    );
  }

  import(slot: number, tensors: readonly HostTensor[]): void {
    this.check(slot);
    checkStateContent(this.spec, this.tokens, tensors);
    this.parts.forEach(({ buffer, dtype, stride }, index) => {
      const { data } = tensors[index]!;
      const own = dtype === 'f16' && data instanceof Float32Array ? toFloat16(data) : data;
      writeBytes(this.#host.device, buffer, slot * stride, new Uint8Array(own.buffer, own.byteOffset, own.byteLength));
    });
  }

  [Symbol.dispose](): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const { buffer } of this.parts) this.#host.memory.give(buffer);
    this.#host.memory.give(this.info);
  }
}
