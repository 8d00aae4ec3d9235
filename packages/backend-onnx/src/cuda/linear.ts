import type { Quantised } from '../dialect.js';
import type { Operator } from './operator.js';

/** A linear map of one token in float16, y = W x, with what may come before and after it. */
export interface LinearForm {
  /** W is [n, k]; k is a multiple of 8, and of 32 in blocks. */
  readonly k: number;
  /** Of matrices. In blocks of 32 numbers (quantise.ts) each of them is two inputs: codes and scales. */
  readonly format: 'float16' | Quantised;
  /** Of x / sqrt(mean of squares + epsilon) * gain, which W is applied to then. */
  readonly epsilon?: number | undefined;
  /** y = silu(G x) * W x, with G [n, k] */
  readonly gated: boolean;
  /** A vector is added to y. */
  readonly residual: boolean;
}

/** Widest x, in numbers: a block's threads hold it and a few rows of the matrices in registers. */
export const widestLinear = 16384;

/** Inputs: x [1, 1, k], W, then as the form says G, gain [k], residual [1, 1, n]; output: y [1, 1, n]. */
export function linearOperator(form: LinearForm): Operator {
  const { k, format, epsilon, gated, residual } = form;
  const float16 = (...dims: (number | string)[]) => ({ type: 'float16', dims }) as const;
  const codes = { type: 'uint8', dims: ['n', k / 32, format === 'q8' ? 32 : 16] } as const;
  const matrix = format === 'float16' ? [float16('n', k)] : [codes, float16('n', k / 32)];
  const { rows, warps } = cutOf(form);
  const what = [
    format !== 'float16' && format,
    gated && 'gated',
    epsilon !== undefined && `norm ${epsilon}`,
    residual && 'residual',
  ];
  return {
    name: ['Linear', k, ...what.filter(Boolean)].join(' '),
    inputs: [
      float16(1, 1, k),
      ...matrix,
      ...(gated ? matrix : []),
      ...(epsilon === undefined ? [] : [float16(k)]),
      ...(residual ? [float16(1, 1, 'n')] : []),
    ],
    outputs: [float16(1, 1, 'n')],
    source: sourceOf(form),
    launches: [
      { kernel: 'linear', grid: [{ blocks: 'n', by: gated ? rows / 2 : rows }], threads: 32 * warps, early: true },
    ],
  };
}

/** How many numbers of a matrix 16 bytes hold. */
const numbersOf: Readonly<Record<LinearForm['format'], number>> = { float16: 8, q8: 16, q4: 32 };

/**
 * Warps of a block, and rows of matrices that it multiplies: small blocks whose threads have about eight loads of 16 bytes each on
 * their way were the fastest ones.
 */
function cutOf({ k, format }: LinearForm): { readonly rows: number; readonly warps: number } {
  const chunks = k / numbersOf[format];
  const warps = chunks <= 128 ? 4 : chunks <= 512 ? 8 : 16;
  const passes = Math.ceil(chunks / (32 * warps));
  return { rows: passes === 1 ? 8 : passes === 2 ? 4 : 2, warps };
}

function sourceOf(form: LinearForm): string {
  const { k, format, epsilon, gated, residual } = form;
  const inBlocks = format !== 'float16';
  const parameters = [
    'const uint4 *x',
    ...(inBlocks ? ['const uint4 *w', 'const half_t *scales'] : ['const uint4 *w']),
    ...(gated ? (inBlocks ? ['const uint4 *gate', 'const half_t *gateScales'] : ['const uint4 *gate']) : []),
    ...(epsilon === undefined ? [] : ['const uint4 *gain']),
    ...(residual ? ['const half_t *residual'] : []),
    'half_t *y',
    'int n',
  ];
  const { rows, warps } = cutOf(form);
  const of = (up: string, gate: string): string => (gated ? `(r < OUTPUTS ? ${gate} : ${up})` : up);
  const value = gated ? 'sum[i] / (1 + __expf(-sum[i])) * sum[OUTPUTS + i]' : 'sum[i]';
  return `
#define NUMBERS ${numbersOf[format]}
#define CHUNKS ${k / numbersOf[format]}
#define ROWS ${rows}
#define WARPS ${warps}
#define OUTPUTS ${gated ? rows / 2 : rows}
#define THREADS (32 * WARPS)
#define PASSES ((CHUNKS + THREADS - 1) / THREADS)
#define NORM ${Number(epsilon !== undefined)}
#define IN_BLOCKS ${Number(inBlocks)}
${numbers[format]}
${common}
extern "C" __global__ void __launch_bounds__(THREADS) linear(${parameters.join(', ')}) {
  const int first = blockIdx.x * OUTPUTS;
  uint4 a[ROWS][PASSES];
  half_t scale[ROWS][PASSES];
#pragma unroll
  for (int r = 0; r < ROWS; r++) {
    const size_t row = min(first + r % OUTPUTS, n - 1);
    load(a[r], ${of('w', 'gate')} + row * CHUNKS);
    ${inBlocks ? `loadScales(scale[r], ${of('scales', 'gateScales')} + row * (CHUNKS * NUMBERS / 32));` : ''}
  }
  before();
  float sum[ROWS + NORM] = {};
  multiply(sum, a, scale, x, ${epsilon === undefined ? 'x' : 'gain'});
  blockSums(sum);
  ${epsilon === undefined ? '' : `const float norm = rsqrtf(sum[ROWS] / (NUMBERS * CHUNKS) + ${epsilon}f);`}
  ${epsilon === undefined ? '' : 'for (int r = 0; r < ROWS; r++) sum[r] *= norm;'}
  for (int i = 0; i < OUTPUTS; i++)
    if (threadIdx.x == i && first + i < n)
      y[first + i] = toHalf(${value}${residual ? ' + toFloat(residual[first + i])' : ''});
}
`;
}

/** Eight numbers, the part-th of a chunk, as float32; in blocks without their scale. A float of 2^23 + code ends in the code's bits. */
const numbers: Readonly<Record<LinearForm['format'], string>> = {
  float16: `
__device__ __forceinline__ void numbers(float *f, uint4 chunk, int part) { unpack(f, chunk); }
`,
  q8: `
__device__ __forceinline__ void numbers(float *f, uint4 chunk, int part) {
  const uint32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int j = 0; j < 8; j++)
    f[j] = __uint_as_float(__byte_perm(words[2 * part + j / 4], 0x4b000000, 0x7440 + j % 4)) - (8388608.0f + 128);
}
`,
  q4: `
__device__ __forceinline__ void numbers(float *f, uint4 chunk, int part) {
  const uint32 words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const int place = 4 * (j % 4);
    const uint32 bits = (words[part] >> (j < 4 ? 0 : 16)) & (15u << place) | 0x4b000000;
    f[j] = fmaf(__uint_as_float(bits), 1.0f / (1 << place), -(8388608.0f / (1 << place) + 8));
  }
}
`,
};

const common = `
__device__ __forceinline__ void load(uint4 (&to)[PASSES], const uint4 *row) {
#pragma unroll
  for (int i = 0; i < PASSES; i++)
    if (i * THREADS + threadIdx.x < CHUNKS) to[i] = streamed(row + i * THREADS + threadIdx.x);
}

/** Of the blocks in which this thread's chunks lie. */
__device__ __forceinline__ void loadScales(half_t (&to)[PASSES], const half_t *row) {
#pragma unroll
  for (int i = 0; i < PASSES; i++)
    if (i * THREADS + threadIdx.x < CHUNKS) to[i] = row[(i * THREADS + threadIdx.x) * NUMBERS / 32];
}

/** This thread's part of the products with x or, with a norm, with gain * x, whose squares are summed up last. */
__device__ __forceinline__ void multiply(float (&sum)[ROWS + NORM], const uint4 (&a)[ROWS][PASSES],
                                         const half_t (&scale)[ROWS][PASSES], const uint4 *x, const uint4 *gain) {
#pragma unroll
  for (int i = 0; i < PASSES; i++) {
    const int chunk = i * THREADS + threadIdx.x;
    if (chunk >= CHUNKS) break;
    float products[ROWS] = {};
#pragma unroll
    for (int part = 0; part < NUMBERS / 8; part++) {
      float f[8], g[8];
      unpack(f, x[chunk * (NUMBERS / 8) + part]);
      if (NORM) {
        unpack(g, gain[chunk * (NUMBERS / 8) + part]);
#pragma unroll
        for (int j = 0; j < 8; j++) {
          sum[ROWS + NORM - 1] = fmaf(f[j], f[j], sum[ROWS + NORM - 1]);
          f[j] *= g[j];
        }
      }
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        numbers(g, a[r][i], part);
#pragma unroll
        for (int j = 0; j < 8; j++) products[r] = fmaf(f[j], g[j], products[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) sum[r] += IN_BLOCKS ? toFloat(scale[r][i]) * products[r] : products[r];
  }
}

/** Sums over the block, for the threads of its first warp. */
__device__ __forceinline__ void blockSums(float (&sum)[ROWS + NORM]) {
  __shared__ float parts[ROWS + NORM][WARPS];
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < ROWS + NORM; r++) {
    sum[r] = warpSum(sum[r]);
    if (lane == 0) parts[r][threadIdx.x / 32] = sum[r];
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
#pragma unroll
  for (int r = 0; r < ROWS + NORM; r++) sum[r] = warpSum(lane < WARPS ? parts[r][lane] : 0);
}
`;
