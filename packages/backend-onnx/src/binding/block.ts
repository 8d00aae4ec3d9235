/** Zeroed memory at a fixed address, of the host or of a device. */
export interface Block {
  readonly address: bigint;
  write(data: Uint8Array): void;
  /** From one of the same kind. */
  copy(from: Block, fromByte: number, toByte: number, bytes: number): void;
  read(bytes: number): ArrayBuffer;
  free(): void;
}

/** One that can be looked at. */
export interface HostBlock extends Block {
  readonly content: Uint8Array;
}

/** What a buffer views. */
export function hostBlock(address: bigint, buffer: ArrayBuffer, free: () => void): HostBlock {
  const content = new Uint8Array(buffer);
  return {
    address,
    content,
    write: (data) => content.set(data),
    copy: (from, fromByte, toByte, bytes) =>
      content.set((from as HostBlock).content.subarray(fromByte, fromByte + bytes), toByte),
    read: (bytes) => buffer.slice(0, bytes),
    free,
  };
}
