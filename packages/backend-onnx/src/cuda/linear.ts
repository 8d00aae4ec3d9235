import type { Operator } from './operator.js';

/** A linear map of one token in float16, y = W x, with what may come before and after it. */
export interface LinearForm {
  /** W is [n, k]; k is a multiple of 8. */
  readonly k: number;
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
  const { k, epsilon, gated, residual } = form;
  const matrix = { type: 'float16', dims: ['n', k] } as const;
  const vector = (width: number | string) => ({ type: 'float16', dims: [1, 1, width] }) as const;
  const gain = { type: 'float16', dims: [k] } as const;
  const what = [gated && 'gated', epsilon !== undefined && `norm ${epsilon}`, residual && 'residual'].filter(Boolean);
  const { rows, warps } = cutOf(k);
  const outputs = gated ? rows / 2 : rows;
  return {
    name: ['Linear', k, ...what].join(' '),
    inputs: [
      vector(k),
      matrix,
      ...(gated ? [matrix] : []),
      ...(epsilon === undefined ? [] : [gain]),
      ...(residual ? [vector('n')] : []),
    ],
    outputs: [vector('n')],
    source: sourceOf(form),
    launches: [{ kernel: 'linear', grid: [{ blocks: 'n', by: outputs }], threads: 32 * warps, early: true }],
  };
}

/**
 * Warps of a block, and rows of matrices that it multiplies: small blocks whose threads have about eight loads of 16 bytes each on
 * their way were the fastest ones.
 */
function cutOf(k: number): { readonly rows: number; readonly warps: number } {
  const warps = k <= 4096 ? 8 : 16;
  const passes = Math.ceil(k / (8 * 32 * warps));
  return { rows: passes === 1 ? 8 : passes === 2 ? 4 : 2, warps };
}

function sourceOf({ k, epsilon, gated, residual }: LinearForm): string {
  const parameters = [
    'const uint4 *x',
    'const uint4 *w',
    ...(gated ? ['const uint4 *gate'] : []),
    ...(epsilon === undefined ? [] : ['const uint4 *gain']),
    ...(residual ? ['const half_t *residual'] : []),
    'half_t *y',
    'int n',
  ];
  const { rows, warps } = cutOf(k);
  const value = gated ? 'sum[i] / (1 + __expf(-sum[i])) * sum[OUTPUTS + i]' : 'sum[i]';
  return `
#define CHUNKS ${k / 8}
#define ROWS ${rows}
#define WARPS ${warps}
#define OUTPUTS ${gated ? rows / 2 : rows}
#define THREADS (32 * WARPS)
#define PASSES ((CHUNKS + THREADS - 1) / THREADS)
#define NORM ${Number(epsilon !== undefined)}
${common}
extern "C" __global__ void __launch_bounds__(THREADS) linear(${parameters.join(', ')}) {
  const int first = blockIdx.x * OUTPUTS;
  uint4 a[ROWS][PASSES], g[PASSES];
  for (int r = 0; r < ROWS; r++)
    load(a[r], ${gated ? '(r < OUTPUTS ? gate : w)' : 'w'} + (size_t)min(first + r % OUTPUTS, n - 1) * CHUNKS);
  ${epsilon === undefined ? '' : 'load(g, gain);'}
  before();
  float sum[ROWS + NORM] = {};
  multiply(sum, a, x, g);
  blockSums(sum);
  ${epsilon === undefined ? '' : `const float scale = rsqrtf(sum[ROWS] / (8 * CHUNKS) + ${epsilon}f);`}
  ${epsilon === undefined ? '' : 'for (int r = 0; r < ROWS; r++) sum[r] *= scale;'}
  for (int i = 0; i < OUTPUTS; i++)
    if (threadIdx.x == i && first + i < n)
      y[first + i] = toHalf(${value}${residual ? ' + toFloat(residual[first + i])' : ''});
}
`;
}

const common = `
__device__ __forceinline__ void load(uint4 (&to)[PASSES], const uint4 *row) {
#pragma unroll
  for (int i = 0; i < PASSES; i++)
    if (i * THREADS + threadIdx.x < CHUNKS) to[i] = streamed(row + i * THREADS + threadIdx.x);
}

/** This thread's part of the products with x or, with a norm, with gain * x, whose squares are summed up last. */
__device__ __forceinline__ void multiply(float (&sum)[ROWS + NORM], const uint4 (&a)[ROWS][PASSES], const uint4 *x,
                                         const uint4 (&gain)[PASSES]) {
#pragma unroll
  for (int i = 0; i < PASSES; i++) {
    if (i * THREADS + threadIdx.x >= CHUNKS) break;
    float f[8], g[8];
    unpack(f, x[i * THREADS + threadIdx.x]);
    if (NORM) {
      unpack(g, gain[i]);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        sum[ROWS + NORM - 1] = fmaf(f[j], f[j], sum[ROWS + NORM - 1]);
        f[j] *= g[j];
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      unpack(g, a[r][i]);
#pragma unroll
      for (int j = 0; j < 8; j++) sum[r] = fmaf(f[j], g[j], sum[r]);
    }
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
