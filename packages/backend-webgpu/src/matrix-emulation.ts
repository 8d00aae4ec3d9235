import type { Kernel } from './kernels/kernel.js';

// For tests only: a kernel of subgroup matrices in plain WGSL, so that its arithmetic can be checked without such a device.
// Matrices lie in a storage buffer, [workgroups, subgroups, places, 256] in float32: every place of the text that makes a
// matrix has one, and a matrix is the number of its place; 0 stands for zeros. A subgroup is 32 lanes of the workgroup in order.

export interface Emulated extends Kernel {
  /** Bytes of the storage buffer that follows the kernel's own, for a workgroup. */
  readonly scratch: number;
}

/** The kernel with the built-ins spelled out. */
export function withoutMatrices(kernel: Kernel): Emulated {
  const memories = new Set<string>();
  const accessor = (verb: string, name: string): string => {
    memories.add(name);
    return `${verb}_${name}(`;
  };
  const halves: string[] = [];
  let places = 0;
  const size = Number(/@workgroup_size\((\d+)\)/.exec(kernel.code)![1]);
  const body = kernel.code
    .replace(/^enable (f16|chromium_experimental_subgroup_matrix);\n/gm, '')
    .replace(/^diagnostic\(off, chromium.*\n/gm, '')
    .replace(/subgroup_matrix_\w+<f\d+, 16, 16>/g, 'u32')
    .replace(/subgroupMatrixLoad<\w+, (row|col)_major>\(&(\w+), /g, (_, order, name) => {
      return `${accessor(`load_${order}`, name)}${++places}u, `;
    })
    .replace(/subgroupMatrixStore<row_major>\(&(\w+), /g, (_, name) => accessor('put', name))
    .replace(/subgroupMatrixMultiplyAccumulate\(/g, () => `multiply(${++places}u, `)
    .replaceAll('bitcast<vec2<f16>>', 'unpack2x16float')
    .replace(/\bf16\b/g, 'f32')
    .replace(/(fn main\([^{]*\{\n)/, (head: string) => `${head}  matrix_lane = lane;\n  matrix_start = PLACE;\n`);
  // Memory of halves joins the matrices: in float32 it would not fit the workgroup's.
  const lanes = (size / 32) * (places + 1) * 256;
  let words = lanes;
  let placed = body.replaceAll('workgroupBarrier();', 'workgroupBarrier();\n  storageBarrier();');
  for (const [declaration, name, count] of kernel.code.matchAll(/var<workgroup> (\w+): array<f16, (\d+)>;/g)) {
    placed = placed.replace(declaration.replace('f16', 'f32'), `const ${name}_base = ${words}u;`);
    halves.push(name!);
    words += Number(count);
  }
  const workgroup = '((group.z * groups.y + group.y) * groups.x + group.x)';
  placed = placed.replace(
    'PLACE',
    `${workgroup} * ${words}u;\n  matrix_base = matrix_start + lane / 32u * ${(places + 1) * 256}u + lane % 32u * 8u`,
  );
  const scratch = 4 * words;
  const code = [placed, builtins(kernel.access.length), ...[...memories].map((name) => accesses(kernel, name))];
  const text = halves.reduce(
    (all, name) => all.replaceAll(new RegExp(`\\b${name}\\[`, 'g'), `matrices[matrix_start + ${name}_base + `),
    code.join('\n'),
  );
  return { ...kernel, code: text, access: [...kernel.access, 'write'], scratch };
}

// A lane has eight elements of every matrix: half a row.
const builtins = (binding: number): string => `
@group(1) @binding(${binding}) var<storage, read_write> matrices: array<f32>;
var<private> matrix_start: u32; // of the workgroup
var<private> matrix_base: u32; // of the lane
var<private> matrix_lane: u32;
fn multiply(to: u32, a: u32, b: u32, sum: u32) -> u32 {
  storageBarrier();
  let first = matrix_base - matrix_lane % 32u * 8u;
  let row = matrix_lane % 32u / 2u * 16u;
  let column = matrix_lane % 2u * 8u;
  for (var e = 0u; e < 8u; e++) {
    var c = 0.0;
    if (sum != 0u) { c = matrices[matrix_base + sum * 256u + e]; }
    for (var k = 0u; k < 16u; k++) {
      c += matrices[first + a * 256u + row + k] * matrices[first + b * 256u + k * 16u + column + e];
    }
    matrices[matrix_base + to * 256u + e] = c;
  }
  return to;
}`;

function accesses({ code }: Kernel, name: string): string {
  const element = 'let row = matrix_lane % 32u / 2u;\n    let column = matrix_lane % 2u * 8u + e;';
  const loads = (['row', 'col'] as const).map((order) => {
    const index = order === 'row' ? 'at + row * pitch + column' : 'at + column * pitch + row';
    return `fn load_${order}_${name}(to: u32, at: u32, pitch: u32) -> u32 {
  storageBarrier();
  for (var e = 0u; e < 8u; e++) {
    ${element}
    let i = ${index};
    matrices[matrix_base + to * 256u + e] = f32(${name}[i]);
  }
  return to;
}`;
  });
  if (!code.includes(`subgroupMatrixStore<row_major>(&${name},`)) return loads.join('\n');
  return `${loads.join('\n')}
fn put_${name}(at: u32, matrix: u32, pitch: u32) {
  for (var e = 0u; e < 8u; e++) {
    ${element}
    let i = at + row * pitch + column;
    ${name}[i] = select(matrices[matrix_base + matrix * 256u + e], 0.0, matrix == 0u);
  }
}`;
}
