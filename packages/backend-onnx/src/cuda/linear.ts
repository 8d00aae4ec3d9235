import type { Operator } from './operator.js';

/** A linear map of one token in float16, y = W x, with what may come before and after it. */
export interface LinearForm {
  /** W is [n, k]; k is a multiple of 8. */
  readonly n: number;
  readonly k: number;
  /** Of x / sqrt(mean of squares + epsilon) * gain, which W is applied to then. */
  readonly epsilon?: number | undefined;
  /** y = silu(G x) * W x, with G [n, k] */
  readonly gated: boolean;
  /** A vector is added to y. */
  readonly residual: boolean;
}

/** Widest x, in numbers: it lies in shared memory. */
export const widestLinear = 16384;

/** Inputs: x [1, 1, k], W, then as the form says G, gain [k], residual [1, 1, n]; output: y [1, 1, n]. */
export function linearOperator(form: LinearForm): Operator {
  const { n, k, epsilon, gated, residual } = form;
  const matrix = { type: 'float16', dims: [n, k] } as const;
  const vector = (width: number) => ({ type: 'float16', dims: [1, 1, width] }) as const;
  const gain = { type: 'float16', dims: [k] } as const;
  const what = [gated && 'gated', epsilon !== undefined && `norm ${epsilon}`, residual && 'residual'].filter(Boolean);
  const perBlock = (rows * warps) / (gated ? 2 : 1);
  return {
    name: ['Linear', `${n} x ${k}`, ...what].join(' '),
    inputs: [
      vector(k),
      matrix,
      ...(gated ? [matrix] : []),
      ...(epsilon === undefined ? [] : [gain]),
      ...(residual ? [vector(n)] : []),
    ],
    outputs: [vector(n)],
    source: sourceOf(form),
    launches: [{ kernel: 'linear', grid: [Math.ceil(n / perBlock)], threads: 32 * warps }],
  };
}

/** Rows of matrices that a warp multiplies at once, 16-byte loads of each that it has on their way, warps of a block. */
const [rows, loads, warps] = [2, 4, 8];

function sourceOf({ n, k, epsilon, gated, residual }: LinearForm): string {
  const parameters = [
    'const half_t *x',
    'const half_t *w',
    ...(gated ? ['const half_t *gate'] : []),
    ...(epsilon === undefined ? [] : ['const half_t *gain']),
    ...(residual ? ['const half_t *residual'] : []),
    'half_t *y',
  ];
  const rowOf = gated ? '(r < OUTPUTS ? gate : w)' : 'w';
  const value = gated ? 'sum[i] / (1 + __expf(-sum[i])) * sum[OUTPUTS + i]' : 'sum[i]';
  return `
#define N ${n}
#define CHUNKS ${k / 8}
#define ROWS ${rows}
#define LOADS ${loads}
#define WARPS ${warps}
#define OUTPUTS ${gated ? rows / 2 : rows}
${common}
extern "C" __global__ void __launch_bounds__(32 * WARPS) linear(${parameters.join(', ')}) {
  __shared__ uint4 shared[CHUNKS];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first = (blockIdx.x * WARPS + warp) * OUTPUTS;
  const uint4 *row[ROWS];
  for (int r = 0; r < ROWS; r++)
    row[r] = (const uint4 *)${rowOf} + (size_t)min(first + r % OUTPUTS, N - 1) * CHUNKS;
  uint4 now[ROWS][LOADS], next[ROWS][LOADS];
  load(now, row, lane);
  ${epsilon === undefined ? 'copyTo(shared, x);' : `normaliseTo(shared, x, gain, ${epsilon}f);`}
  __syncthreads();
  float sum[ROWS] = {};
  for (int chunk = lane; chunk < CHUNKS; chunk += 32 * LOADS) {
    load(next, row, chunk + 32 * LOADS);
    multiply(sum, now, shared, chunk);
    for (int u = 0; u < LOADS; u++)
      for (int r = 0; r < ROWS; r++) now[r][u] = next[r][u];
  }
  for (int r = 0; r < ROWS; r++) sum[r] = warpSum(sum[r]);
  if (lane > 0) return;
  for (int i = 0; i < OUTPUTS; i++) {
    if (first + i == N) return;
    y[first + i] = toHalf(${value}${residual ? ' + toFloat(residual[first + i])' : ''});
  }
}
`;
}

const common = `
__device__ __forceinline__ void load(uint4 (&to)[ROWS][LOADS], const uint4 *const (&row)[ROWS], int chunk) {
#pragma unroll
  for (int u = 0; u < LOADS; u++)
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      if (chunk + 32 * u < CHUNKS) to[r][u] = streamed(row[r] + chunk + 32 * u);
}

__device__ __forceinline__ void multiply(float (&sum)[ROWS], const uint4 (&w)[ROWS][LOADS], const uint4 *x, int chunk) {
#pragma unroll
  for (int u = 0; u < LOADS; u++) {
    if (chunk + 32 * u >= CHUNKS) return;
    float a[8], b[8];
    unpack(a, x[chunk + 32 * u]);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      unpack(b, w[r][u]);
#pragma unroll
      for (int j = 0; j < 8; j++) sum[r] = fmaf(a[j], b[j], sum[r]);
    }
  }
}

__device__ __forceinline__ void copyTo(uint4 *to, const half_t *x) {
  for (int i = threadIdx.x; i < CHUNKS; i += blockDim.x) to[i] = ((const uint4 *)x)[i];
}

__device__ __forceinline__ void normaliseTo(uint4 *to, const half_t *x, const half_t *gain, float epsilon) {
  __shared__ float squares[WARPS];
  float square = 0, a[8], b[8];
  for (int i = threadIdx.x; i < CHUNKS; i += blockDim.x) {
    unpack(a, ((const uint4 *)x)[i]);
    for (int j = 0; j < 8; j++) square = fmaf(a[j], a[j], square);
  }
  square = warpSum(square);
  if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = square;
  __syncthreads();
  square = 0;
  for (int i = 0; i < WARPS; i++) square += squares[i];
  const float scale = rsqrtf(square / (8 * CHUNKS) + epsilon);
  for (int i = threadIdx.x; i < CHUNKS; i += blockDim.x) {
    unpack(a, ((const uint4 *)x)[i]);
    unpack(b, ((const uint4 *)gain)[i]);
    for (int j = 0; j < 8; j++) a[j] *= scale * b[j];
    to[i] = pack(a);
  }
}
`;
