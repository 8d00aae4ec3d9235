import { disposed } from '../errors.js';
import type { Memory } from './binding.js';
import type { Block } from './block.js';
import type { Handle } from './ort-api.js';

let nextMemory = 1;

/** A block, and where it lies in ONNX Runtime's words. */
export class CApiMemory implements Memory {
  readonly id: number = nextMemory++;
  readonly bytes: number;
  /** OrtMemoryInfo */
  readonly info: Handle;
  readonly bound: Set<{ dispose(): void }> = new Set();
  readonly #forget: () => void;
  readonly beside: ((count: number) => CApiMemory | undefined) | undefined;
  #block: Block | undefined;

  /** `beside`: of what lies in a region. */
  constructor(
    block: Block,
    info: Handle,
    bytes: number,
    forget: () => void,
    beside?: (count: number) => CApiMemory | undefined,
  ) {
    this.beside = beside;
    this.#block = block;
    this.info = info;
    this.bytes = bytes;
    this.#forget = forget;
  }

  write(data: ArrayBufferView): void {
    this.#held.write(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }

  copy(from: Memory, fromByte: number, toByte: number, bytes: number): void {
    this.#held.copy((from as CApiMemory).#held, fromByte, toByte, bytes);
  }

  async read(bytes: number): Promise<ArrayBuffer> {
    return this.#held.read(bytes);
  }

  address(offset: number): bigint {
    return this.#held.address + BigInt(offset);
  }

  free(): void {
    if (!this.#block) return;
    for (const each of this.bound) each.dispose();
    this.#block.free();
    this.#block = undefined;
    this.#forget();
  }

  /** @throws DslaError E_DISPOSED */
  get #held(): Block {
    if (!this.#block) throw disposed('memory');
    return this.#block;
  }
}
