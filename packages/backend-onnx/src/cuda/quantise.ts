import type { Quantised } from '../dialect.js';
import type { Operator } from './operator.js';

/** Numbers of a block, which one thread reads. */
const blockSize = 32;
const threads = 128;

/**
 * Numbers [blocks, 32] to the bytes that quantise.ts makes of them, bit by bit: integers of all blocks, then their scales.
 * `type`: of the numbers and the scales.
 */
export function quantiseOperator(format: Quantised, type: 'float' | 'float16'): Operator {
  const codeBytes = format === 'q8' ? blockSize : blockSize / 2;
  const scaleBytes = type === 'float16' ? 2 : 4;
  return {
    name: `Quantise ${format} ${type}`,
    inputs: [{ type, dims: ['blocks', blockSize] }],
    outputs: [{ type: 'uint8', dims: [{ times: ['blocks', codeBytes + scaleBytes] }] }],
    source: `
#define NUMBER ${type === 'float16' ? 'half_t' : 'float'}
#define VALUE(x) ${type === 'float16' ? 'toFloat(x)' : '(x)'}
#define SCALE(x) ${type === 'float16' ? '(x)' : 'toFloat(x)'}
#define CODE_BYTES ${codeBytes}
#define LARGEST ${format === 'q8' ? 255 : 15}
${kernelOf(format)}`,
    launches: [{ kernel: 'quantise', grid: [{ blocks: 'blocks', by: threads }], threads }],
  };
}

const kernelOf = (format: Quantised): string => `
/** Rounded to a whole number, halves to even ones. */
__device__ __forceinline__ unsigned code(float x, float inverse) {
  const float whole = rintf(x * inverse) + ${format === 'q8' ? 128 : 8};
  return (unsigned)fminf(fmaxf(whole, 0), LARGEST);
}

extern "C" __global__ void quantise(const NUMBER *numbers, unsigned char *bytes, int blocks) {
  const long block = (long)blockIdx.x * blockDim.x + threadIdx.x;
  if (block >= blocks) return;
  __align__(16) NUMBER own[${blockSize}];
#pragma unroll
  for (int i = 0; i < (int)sizeof(own) / 16; i++) ((uint4 *)own)[i] = ((const uint4 *)(numbers + block * ${blockSize}))[i];
  float peak = 0;
#pragma unroll
  for (int i = 0; i < ${blockSize}; i++) peak = fabsf(VALUE(own[i])) > fabsf(peak) ? VALUE(own[i]) : peak;
  const half_t scale = toHalf(${format === 'q8' ? 'fabsf(peak) / 127' : 'peak / -8'});
  const float inverse = toFloat(scale) == 0 ? 0 : 1 / toFloat(scale);
  __align__(16) unsigned char codes[CODE_BYTES];
#pragma unroll
  for (int i = 0; i < CODE_BYTES; i++)
    codes[i] = ${
      format === 'q8'
        ? 'code(VALUE(own[i]), inverse)'
        : 'code(VALUE(own[2 * i]), inverse) | code(VALUE(own[2 * i + 1]), inverse) << 4'
    };
#pragma unroll
  for (int i = 0; i < CODE_BYTES / 16; i++) ((uint4 *)(bytes + block * CODE_BYTES))[i] = ((uint4 *)codes)[i];
  ((NUMBER *)(bytes + (long)blocks * CODE_BYTES))[block] = SCALE(scale);
}
`;
