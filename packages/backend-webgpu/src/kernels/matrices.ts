import { upTo } from './kernel.js';

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

/** The same for float32 that are stored as matrices and read as vectors of four. */
export function scorePitchOf(width: number): number {
  return width + 4;
}

/**
 * WGSL of workgroup memory for matrices in float16, and of a function that writes eight neighbours: single halves would be
 * stored in 16 bits each.
 */
export function halves(name: string, count: number): string {
  return `var<workgroup> ${name}: array<vec4u, ${count / 8}>;
fn store_${name}(at: u32, eight: vec4u) { ${name}[at / 8u] = eight; }`;
}

/** WGSL of workgroup memory for `count` float32, where sums are stored and read by four. */
export function fours(name: string, count: number): string {
  return `var<workgroup> ${name}: array<vec4f, ${count / 4}>;`;
}

/** WGSL of eight neighbours in float16 as two vectors of four, and back. */
export const eightFunctions = `fn low_of(eight: vec4u) -> vec4f { return vec4f(unpack2x16float(eight.x), unpack2x16float(eight.y)); }
fn high_of(eight: vec4u) -> vec4f { return vec4f(unpack2x16float(eight.z), unpack2x16float(eight.w)); }
fn eight_of(low: vec4f, high: vec4f) -> vec4u {
  return vec4u(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
}`;

/** Lanes of a workgroup that stages. */
export const stageSize = 128;

/**
 * WGSL that brings `lines` of `width` halves into rows of workgroup memory, up to nine loads before their stores. Values
 * without branches: a load in a branch waits for the one before.
 */
export function stage(
  to: string,
  width: number,
  pitch: number,
  value: (line: string, eight: string) => string,
  lines = 64,
): string {
  const eights = width / 8;
  const count = (lines * eights) / stageSize;
  const together = [9, 8, 6, 5, 4, 3, 2, 1].find((n) => count % n === 0)!;
  // Where whole lines are loaded at once, a lane stays with its columns, and loads by column alone are shared.
  const whole = stageSize % eights === 0;
  const line = (n: number) =>
    whole ? `(e / ${eights}u + ${(n * stageSize) / eights}u)` : `((e + ${n * stageSize}u) / ${eights}u)`;
  const eight = (n: number) => (whole ? `(lane % ${eights}u)` : `((e + ${n * stageSize}u) % ${eights}u)`);
  const all = upTo(together);
  return `    for (var e = lane; e < ${lines * eights}u; e += ${together * stageSize}u) {
${all.map((n) => `      let value${n} = ${value(line(n), eight(n))};`).join('\n')}
${all.map((n) => `      store_${to}(${line(n)} * ${pitch}u + ${eight(n)} * 8u, value${n});`).join('\n')}
    }`;
}

/** WGSL that loads an operand from memory of `halves`; `at` and pitch count halves. */
export function load(type: 'Left' | 'Right', order: 'row' | 'col', of: string, at: string, pitch: number): string {
  return `subgroupMatrixLoad<${type}, ${order}_major>(&${of}, (${at}) / 8u, ${pitch / 8}u)`;
}

/** WGSL that stores sums in memory of `fours`, or loads them; `at` and pitch count numbers. */
export function storeSums(of: string, at: string, sums: string, pitch: number): string {
  return `subgroupMatrixStore<row_major>(&${of}, (${at}) / 4u, ${sums}, ${pitch / 4}u);`;
}

export function loadSums(of: string, at: string, pitch: number): string {
  return `subgroupMatrixLoad<Sum, row_major>(&${of}, (${at}) / 4u, ${pitch / 4}u)`;
}

/** WGSL of sum += left * right. */
export function multiply(sum: string, left: string, right: string): string {
  return `${sum} = subgroupMatrixMultiplyAccumulate(${left}, ${right}, ${sum});`;
}
