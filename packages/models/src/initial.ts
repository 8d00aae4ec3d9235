// Untuned starts of the weights of a conversion.

export function filled(count: number, value: number): Float32Array {
  return new Float32Array(count).fill(value);
}

/** [rows, columns] with ones on the diagonal; row r beyond the columns starts over. */
export function identity(rows: number, columns: number): Float32Array {
  return identities(1, rows, columns);
}

/** [matrices, rows, columns]: `identity` over and over. */
export function identities(matrices: number, rows: number, columns: number): Float32Array {
  const values = new Float32Array(matrices * rows * columns);
  for (let row = 0; row < matrices * rows; row++) values[row * columns + ((row % rows) % columns)] = 1;
  return values;
}

/** Normal numbers (Box-Muller) from a seed (mulberry32). */
export function normal(count: number, deviation: number, seed: number): Float32Array {
  let state = seed >>> 0;
  const uniform = (): number => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  return Float32Array.from({ length: count }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())); // 1 - u: never log(0)
    return deviation * radius * Math.cos(2 * Math.PI * uniform());
  });
}
