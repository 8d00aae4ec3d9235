// Subgroup matrices of 16x16x16, float16 to float32, by subgroups of 32 lanes, and the workgroup memory that feeds them.

/** WGSL names of the operands and the sums of a product. */
export const matrixTypes = `alias Left = subgroup_matrix_left<f16, 16, 16>;
alias Right = subgroup_matrix_right<f16, 16, 16>;
alias Sum = subgroup_matrix_result<f32, 16, 16>;`;

/**
 * Distance of rows of `width` halves in workgroup memory: eight of them, 16 bytes each, lie in different banks. Width a
 * multiple of 16.
 */
export function pitchOf(width: number): number {
  return width + 8;
}

/**
 * WGSL of workgroup memory for matrices, and of a function that writes a word of two halves. A store takes 16 bits, whatever
 * the source says, so lanes must not write 16 bytes each: their stores would meet in eight banks of 32. Neighbours in a
 * subgroup write neighbouring words.
 */
export function halves(name: string, count: number): string {
  return `var<workgroup> ${name}: array<f16, ${count}>;
fn store_${name}(at: u32, word: u32) {
  let pair = bitcast<vec2<f16>>(word);
  ${name}[at] = pair.x;
  ${name}[at + 1u] = pair.y;
}`;
}

/** Lanes of a workgroup that stages, and lines that it stages at once. */
export const stageSize = 128;
const stageLines = 64;

/** WGSL that brings 64 lines of `words` words into rows of halves, eight loads before their stores. */
export function stage(
  to: string,
  words: number,
  pitch: number,
  value: (line: string, word: string) => string,
  type: 'u32' | 'vec2f' = 'u32',
): string {
  const count = (stageLines * words) / stageSize;
  const together = count % 8 === 0 ? 8 : count % 4 === 0 ? 4 : 1;
  const line = (n: number) => `((e + ${n * stageSize}u) / ${words}u)`;
  const word = (n: number) => `((e + ${n * stageSize}u) % ${words}u)`;
  const put = (n: number) => {
    const at = `${line(n)} * ${pitch}u + ${word(n)} * 2u`;
    return type === 'u32'
      ? `      store_${to}(${at}, value${n});`
      : `      ${to}[${at}] = f16(value${n}.x);\n      ${to}[${at} + 1u] = f16(value${n}.y);`;
  };
  return `    for (var e = lane; e < ${stageLines * words}u; e += ${together * stageSize}u) {
${upTo(together)
  .map((n) => `      let value${n} = ${value(line(n), word(n))};`)
  .join('\n')}
${upTo(together).map(put).join('\n')}
    }`;
}

/** WGSL that loads a matrix from workgroup memory. */
export function load(
  type: 'Left' | 'Right' | 'Sum',
  order: 'row' | 'col',
  of: string,
  at: string,
  pitch: number,
): string {
  return `subgroupMatrixLoad<${type}, ${order}_major>(&${of}, ${at}, ${pitch}u)`;
}

/** WGSL of sum += left * right. */
export function multiply(sum: string, left: string, right: string): string {
  return `${sum} = subgroupMatrixMultiplyAccumulate(${left}, ${right}, ${sum});`;
}

/** Numbers from 0 to n - 1. */
export function upTo(n: number): number[] {
  return [...Array(n).keys()];
}
