import { closeSync, openSync, readSync } from 'node:fs';

/** Names of the libraries that a 64-bit little-endian ELF file wants to be loaded with it (its DT_NEEDED entries). */
export function neededLibraries(path: string): string[] {
  const file = openSync(path, 'r');
  try {
    const at = (offset: number, bytes: number): Buffer => {
      const buffer = Buffer.alloc(bytes);
      readSync(file, buffer, 0, bytes, offset);
      return buffer;
    };
    const header = at(0, 64);
    if (header.readUInt32BE(0) !== 0x7f454c46) return [];
    const [size, count] = [header.readUInt16LE(54), header.readUInt16LE(56)];
    const table = at(Number(header.readBigUInt64LE(32)), size * count);
    const segments = Array.from({ length: count }, (_, index) => {
      const read = (offset: number): number => Number(table.readBigUInt64LE(index * size + offset));
      return { type: table.readUInt32LE(index * size), offset: read(8), address: read(16), bytes: read(32) };
    });
    const dynamic = segments.find(({ type }) => type === 2); // PT_DYNAMIC
    if (!dynamic) return [];
    const entries = at(dynamic.offset, dynamic.bytes);
    const values = (tag: number): number[] => {
      const found: number[] = [];
      for (let entry = 0; entry + 16 <= entries.length; entry += 16)
        if (Number(entries.readBigUInt64LE(entry)) === tag) found.push(Number(entries.readBigUInt64LE(entry + 8)));
      return found;
    };
    const [address, bytes] = [values(5)[0]!, values(10)[0]!]; // DT_STRTAB, DT_STRSZ
    const home = segments.find(
      (each) => each.type === 1 && address >= each.address && address < each.address + each.bytes,
    );
    if (!home) return [];
    const names = at(home.offset + address - home.address, bytes);
    return values(1).map((start) => names.toString('latin1', start, names.indexOf(0, start))); // DT_NEEDED
  } finally {
    closeSync(file);
  }
}

/** Whether a file contains a text. */
export function containsText(path: string, text: string): boolean {
  const file = openSync(path, 'r');
  const overlap = text.length - 1;
  const buffer = Buffer.alloc(2 ** 22);
  try {
    for (let offset = 0; ; offset += buffer.length - overlap) {
      const bytes = readSync(file, buffer, 0, buffer.length, offset);
      if (buffer.subarray(0, bytes).includes(text)) return true;
      if (bytes < buffer.length) return false;
    }
  } finally {
    closeSync(file);
  }
}
