/** Mean and standard deviation. */
export interface Spread {
  readonly mean?: number;
  readonly std?: number;
}

/** `count` normal numbers that depend on nothing but the key. */
export function normals(key: string, count: number, { mean = 0, std = 1 }: Spread = {}): Float32Array {
  const next = uniform(key);
  return Float32Array.from({ length: count }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - next())); // Box and Muller
    return mean + std * radius * Math.cos(2 * Math.PI * next());
  });
}

/** Integer in 0..below-1 that depends on nothing but the key. */
export function integer(key: string, below: number): number {
  return Math.floor(uniform(key)() * below);
}

/** The numbers 0..count-1 in an order that depends on nothing but the key. */
export function shuffled(key: string, count: number): number[] {
  const next = uniform(key);
  const items = Array.from({ length: count }, (_, index) => index);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(next() * (i + 1));
    [items[i], items[j]] = [items[j]!, items[i]!];
  }
  return items;
}

/** Uniform numbers in [0, 1): mulberry32 (public domain), seeded with the FNV-1a hash of the key. */
function uniform(key: string): () => number {
  let state = 0x811c9dc5;
  for (let i = 0; i < key.length; i++) state = Math.imul(state ^ key.charCodeAt(i), 0x01000193);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  };
}
