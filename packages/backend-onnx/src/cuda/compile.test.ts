import koffi from 'koffi';
import { describe, expect, it } from 'vitest';
import { attentionOperator } from './attention.js';
import { compilerLibrary, openCompiler } from './compile.js';
import { drawOperator } from './draw.js';
import { linearOperator } from './linear.js';
import { quantiseOperator } from './quantise.js';

const library = [13, 12].map(compilerLibrary).find((name) => {
  try {
    return koffi.load(name);
  } catch {
    return false;
  }
});

const operators = [
  drawOperator(32000),
  linearOperator({ format: 'float16', k: 4096, epsilon: 1e-5, gated: false, residual: false }),
  linearOperator({ format: 'float16', k: 4096, epsilon: 1e-5, gated: true, residual: false }),
  linearOperator({ format: 'float16', k: 11008, gated: false, residual: true }),
  linearOperator({ format: 'float16', k: 8, epsilon: 1e-6, gated: true, residual: true }),
  linearOperator({ format: 'q8', k: 4096, epsilon: 1e-5, gated: true, residual: false }),
  linearOperator({ format: 'q4', k: 11008, gated: false, residual: true }),
  attentionOperator({ heads: 32, kvHeads: 32, headDim: 128, rotaryDim: 128, scale: 0.1, packed: true }),
  attentionOperator({ heads: 6, kvHeads: 2, headDim: 80, rotaryDim: 32, scale: 0.1, packed: false }),
  attentionOperator({ heads: 256, kvHeads: 64, headDim: 256, rotaryDim: 0, scale: 1, packed: true }),
  quantiseOperator('q8', 'float16'),
  quantiseOperator('q4', 'float'),
];

describe.skipIf(library === undefined)(`CUDA C (${library ?? 'skipped: the loader finds no libnvrtc'})`, () => {
  it('becomes machine code for an architecture', async () => {
    const compiler = await openCompiler(library!);
    const source = 'extern "C" __global__ void twice(const half_t *x, half_t *y) { y[0] = toHalf(2 * toFloat(x[0])); }';
    const code = await compiler.compile('twice', source, 'sm_90a');
    const text = Buffer.from(code).toString('latin1');
    expect([text.slice(1, 4), text.includes('twice')]).toEqual(['ELF', true]);
  });

  it.each(operators)('$name compiles', async ({ name, source }) => {
    const compiler = await openCompiler(library!);
    expect((await compiler.compile(name, source, 'sm_90a')).length).toBeGreaterThan(0);
  });

  it.each(operators)('$name takes what an operator hands to its kernels', ({ source, inputs, outputs }) => {
    const named = new Set(inputs.flatMap(({ dims }) => dims.filter((dim) => typeof dim === 'string')));
    const [, parameters] = /__global__ void[^{]*?\w+\(([^()]*)\) \{/.exec(source)!;
    expect(parameters!.split(',')).toHaveLength(inputs.length + outputs.length + named.size);
  });

  it('that is wrong is refused in the words of the compiler', async () => {
    const compiler = await openCompiler(library!);
    await expect(compiler.compile('wrong', 'extern "C" __global__ void f() { g(); }', 'sm_90a')).rejects.toThrow(
      /wrong does not compile.*identifier "g" is undefined/s,
    );
  });
});
