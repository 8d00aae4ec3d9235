import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import koffi from 'koffi';
import { clusters } from '../src/cuda/attention.js';
import { instructions } from '../src/cuda/matrices.js';
import type { NamedOperator } from '../src/cuda/named.js';
import type { Operator } from '../src/cuda/operator.js';

// Operators of our own as C++ on the CPU (emulate.h).

const compiler = ['c++', 'g++', 'clang++'].find((name) => spawnSync(name, ['--version']).status === 0);

/** Whether kernels can be run here, */
export const runs: boolean = process.platform === 'linux' && compiler !== undefined;
/** and what says so. */
export const withWhat: string = runs ? compiler! : 'skipped: no C++ compiler on Linux';

export type Memory = Readonly<Record<string, ArrayBufferView>>;

/** Compiles an operator's kernels as C++; the result runs them on memory by name. */
export function emulated(
  operator: NamedOperator,
  folder: string,
): (memory: Memory, sizes: Readonly<Record<string, number>>) => void {
  const path = join(folder, `${operator.launches[0]!.kernel}${libraries++}`);
  const source = operator.source
    .replace(instructions, '')
    .replace(clusters, '')
    .replaceAll('extern __shared__ __align__(16) unsigned char shared[];', '')
    .replaceAll('extern "C" __global__', 'static');
  const entries = operator.launches.map(
    ({
      kernel,
    }) => `extern "C" void run_${kernel}(unsigned x, unsigned y, unsigned z, unsigned threads, const uint64_t *given) {
  launch([](const uint64_t *all) { call(${kernel}, all); }, x, y, z, threads, given);
}`,
  );
  // Else shared memory of an inline function is that of the first library that has one of its name, whatever its size there.
  writeFileSync(`${path}.cpp`, ['namespace {', source, '}', ...entries].join('\n'));
  const header = new URL('./emulate.h', import.meta.url).pathname;
  const flags = ['-O1', '-w', '-std=c++20', '-shared', '-fPIC', '-include', header, `${path}.cpp`, '-o', `${path}.so`];
  const made = spawnSync(compiler!, flags, { encoding: 'utf8' });
  if (made.status !== 0) throw new Error(made.stderr);
  const library = koffi.load(`${path}.so`);
  return (memory, sizes) => {
    const pointers = [...operator.inputNames, ...operator.outputNames].map((name) => koffi.address(memory[name]!));
    const named = new Set(operator.inputs.flatMap(({ dims }) => dims.filter((size) => typeof size === 'string')));
    const given = BigUint64Array.from([...pointers, ...Array.from(named, (name) => BigInt(sizes[name]!))]);
    for (const { kernel, grid, threads } of operator.launches) {
      const run = library.func(`run_${kernel}`, 'void', ['uint', 'uint', 'uint', 'uint', 'uint64_t *']);
      const [x, y = 1, z = 1] = grid.map((size) => blocksOf(size, sizes));
      run(x, y, z, threads, given);
    }
  };
}
let libraries = 0;

function blocksOf(size: Operator['launches'][number]['grid'][number], sizes: Readonly<Record<string, number>>): number {
  if (typeof size === 'number') return size;
  if (typeof size === 'string') return sizes[size]!;
  if ('times' in size) return size.times.reduce<number>((product, each) => product * blocksOf(each, sizes), 1);
  return Math.ceil(blocksOf(size.blocks, sizes) / size.by);
}

/** RMS of the difference over that of what is wanted. */
export function ratio(got: Float32Array, want: Float32Array): number {
  const square = (values: Float32Array): number => values.reduce((sum, x) => sum + x * x, 0);
  return Math.sqrt(square(want.map((x, at) => x - got[at]!)) / (square(want) || 1));
}
