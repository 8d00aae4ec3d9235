import type { Kernel } from './kernels/kernel.js';

// For tests only: a kernel of subgroup matrices in plain WGSL, so that its arithmetic can be checked without such a device.
// Matrices lie in a storage buffer of words, [workgroups, subgroups, places, 256] in float32: every place of the text that makes
// a matrix has one, and a matrix is the number of its place; 0 stands for zeros. A subgroup is 32 lanes of the workgroup in
// order. Workgroup memory that feeds matrices lies there too: it would not fit that of a software adapter.

export interface Emulated extends Kernel {
  /** Bytes of the storage buffer that follows the kernel's own, for a workgroup. */
  readonly scratch: number;
}

/** Memory that matrices are loaded from and stored to: numbers of an element, and its place in words of a workgroup. */
interface Staged {
  readonly type: 'vec4u' | 'vec4f';
  readonly base: number;
}

/** The kernel with the built-ins spelled out. */
export function withoutMatrices(kernel: Kernel): Emulated {
  const used = new Set<string>();
  const accessor = (verb: string, name: string): string => {
    used.add(name);
    return `${verb}_${name}(`;
  };
  let places = 0;
  const size = Number(/@workgroup_size\((\d+)\)/.exec(kernel.code)![1]);
  let code = kernel.code
    .replace(/^enable (f16|chromium_experimental_subgroup_matrix);\n/gm, '')
    .replace(/^diagnostic\(off, chromium.*\n/gm, '')
    .replace(/subgroup_matrix_\w+<f\d+, 16, 16>/g, 'u32')
    .replace(/subgroupMatrixLoad<(\w+), (row|col)_major>\(&(\w+), /g, (_, type, order, name) => {
      return `${accessor(type === 'Sum' ? 'take' : `load_${order}`, name)}${++places}u, `;
    })
    .replace(/subgroupMatrixStore<row_major>\(&(\w+), /g, (_, name) => accessor('keep', name))
    .replace(/subgroupMatrixMultiplyAccumulate\(/g, () => `multiply(${++places}u, `)
    .replace(/\bf16\b/g, 'f32')
    .replace(/(fn main\([^{]*\{\n)/, (head: string) => `${head}  matrix_lane = lane;\n  matrix_start = PLACE;\n`)
    .replaceAll('workgroupBarrier();', 'workgroupBarrier();\n  storageBarrier();');
  const staged = new Map<string, Staged>();
  let words = (size / 32) * (places + 1) * 256;
  for (const [text, name, type, count] of code.matchAll(/var<workgroup> (\w+): array<(vec4[uf]), (\d+)>;/g)) {
    if (!used.has(name!)) continue;
    staged.set(name!, { type: type as Staged['type'], base: words });
    words += 4 * Number(count);
    code = code.replace(text, '');
  }
  for (const [name, { type, base }] of staged) {
    const four = upTo4((e) => `matrices[matrix_start + ${base}u + 4u * (i) + ${e}u]`).join(', ');
    code = code
      .replace(
        new RegExp(`\\b${name}\\[at / 8u\\] = eight;`),
        upTo4((e) => `matrices[matrix_start + ${base}u + at / 2u + ${e}u] = eight[${e}];`).join(' '),
      )
      .replaceAll(new RegExp(`\\b${name}\\[`, 'g'), `all_${name}()[`)
      .replaceAll(new RegExp(`all_${name}\\(\\)\\[([^\\[\\]]*)\\] \\*= ([^;]*);`, 'g'), `scale_${name}($1, $2);`)
      .replaceAll(new RegExp(`all_${name}\\(\\)\\[([^\\[\\]]*)\\]`, 'g'), `at_${name}($1)`);
    const value = type === 'vec4f' ? `bitcast<vec4f>(vec4u(${four}))` : `vec4u(${four})`;
    code += `\nfn at_${name}(i: u32) -> ${type} { return ${value}; }`;
    if (type === 'vec4f')
      code += `\nfn scale_${name}(i: u32, by: f32) {\n  let scaled = bitcast<vec4u>(at_${name}(i) * by);\n  ${upTo4((e) => `matrices[matrix_start + ${base}u + 4u * i + ${e}u] = scaled[${e}];`).join(' ')}\n}`;
  }
  const workgroup = '((group.z * groups.y + group.y) * groups.x + group.x)';
  code = code.replace(
    'PLACE',
    `${workgroup} * ${words}u;\n  matrix_base = matrix_start + lane / 32u * ${(places + 1) * 256}u + lane % 32u * 8u`,
  );
  const parts = [
    code,
    builtins(kernel.access.length),
    ...[...used].map((name) => accesses(kernel, name, staged.get(name))),
  ];
  return { ...kernel, code: parts.join('\n'), access: [...kernel.access, 'write'], scratch: 4 * words };
}

function upTo4<T>(make: (e: number) => T): T[] {
  return [0, 1, 2, 3].map(make);
}

// A lane has eight elements of every matrix: half a row.
const builtins = (binding: number): string => `
@group(1) @binding(${binding}) var<storage, read_write> matrices: array<u32>;
var<private> matrix_start: u32; // of the workgroup
var<private> matrix_base: u32; // of the lane
var<private> matrix_lane: u32;
fn number_at(i: u32) -> f32 { return bitcast<f32>(matrices[i]); }
fn multiply(to: u32, a: u32, b: u32, sum: u32) -> u32 {
  storageBarrier();
  let first = matrix_base - matrix_lane % 32u * 8u;
  let row = matrix_lane % 32u / 2u * 16u;
  let column = matrix_lane % 2u * 8u;
  for (var e = 0u; e < 8u; e++) {
    var c = 0.0;
    if (sum != 0u) { c = number_at(matrix_base + sum * 256u + e); }
    for (var k = 0u; k < 16u; k++) {
      c += number_at(first + a * 256u + row + k) * number_at(first + b * 256u + k * 16u + column + e);
    }
    matrices[matrix_base + to * 256u + e] = bitcast<u32>(c);
  }
  return to;
}`;

/** Loads and stores of a memory; offsets and pitches count its elements. */
function accesses({ code }: Kernel, name: string, staged: Staged | undefined): string {
  const element = 'let row = matrix_lane % 32u / 2u;\n    let column = matrix_lane % 2u * 8u + e;';
  const numbers = staged ? (staged.type === 'vec4u' ? 8 : 4) : 1;
  const number = {
    8: `unpack2x16float(matrices[matrix_start + ${staged?.base}u + i / 2u])[i % 2u]`,
    4: `number_at(matrix_start + ${staged?.base}u + i)`,
    1: `f32(${name}[i])`,
  }[numbers];
  const loads = (['row', 'col'] as const).map((order) => {
    const index = order === 'row' ? 'row * pitch' : 'column * pitch';
    const rest = order === 'row' ? 'column' : 'row';
    return `fn load_${order}_${name}(to: u32, at: u32, pitch: u32) -> u32 {
  storageBarrier();
  for (var e = 0u; e < 8u; e++) {
    ${element}
    let i = (at + ${index}) * ${numbers}u + ${rest};
    matrices[matrix_base + to * 256u + e] = bitcast<u32>(f32(${number}));
  }
  return to;
}`;
  });
  if (!code.includes(`subgroupMatrixStore<row_major>(&${name},`)) return loads.join('\n');
  // Sums are float32, whatever the memory holds else.
  const unit = staged ? 4 : 1;
  const sum = staged ? `number_at(matrix_start + ${staged.base}u + i)` : `f32(${name}[i])`;
  const target = staged ? `matrices[matrix_start + ${staged.base}u + i] = bitcast<u32>(value);` : `${name}[i] = value;`;
  return `${loads.join('\n')}
fn take_${name}(to: u32, at: u32, pitch: u32) -> u32 {
  storageBarrier();
  for (var e = 0u; e < 8u; e++) {
    ${element}
    let i = (at + row * pitch) * ${unit}u + column;
    matrices[matrix_base + to * 256u + e] = bitcast<u32>(${sum});
  }
  return to;
}
fn keep_${name}(at: u32, matrix: u32, pitch: u32) {
  for (var e = 0u; e < 8u; e++) {
    ${element}
    let i = (at + row * pitch) * ${unit}u + column;
    let value = select(number_at(matrix_base + matrix * 256u + e), 0.0, matrix == 0u);
    ${target}
  }
}`;
}
