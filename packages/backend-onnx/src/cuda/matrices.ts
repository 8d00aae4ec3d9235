// CUDA C for products of 16 x 16 and 16 x 8 matrices by a warp, on tensor cores (PTX ISA, mma.sync.m16n8k16 and ldmatrix). In all of
// it lane l of a warp holds, of a result [16, 8], rows l / 4 and l / 4 + 8 of columns l % 4 * 2 and the next.

/** Instructions that CUDA C has no word for. */
export const instructions: string = `
__device__ __forceinline__ unsigned sharedAddress(const void *p) { return (unsigned)__cvta_generic_to_shared(p); }

/** Four matrices [8, 8]; lanes 8 i to 8 i + 7 say where the rows of the i-th begin. */
__device__ __forceinline__ void loadMatrices(half2_t (&m)[4], const half_t *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(sharedAddress(row)));
}

/** The same, each transposed. */
__device__ __forceinline__ void loadTransposed(half2_t (&m)[4], const half_t *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3]) : "r"(sharedAddress(row)));
}

/** sum [16, 8] += a [16, 16] b [16, 8] */
__device__ __forceinline__ void multiply(float (&sum)[4], const half2_t (&a)[4], half2_t low, half2_t high) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(low), "r"(high));
}

/** 2^x */
__device__ __forceinline__ float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/** Starts to copy 16 bytes to shared memory; zeros where nothing is there, but a pointer must be. */
__device__ __forceinline__ void copy16(void *to, const void *from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(sharedAddress(to)), "l"(from), "r"(there ? 16 : 0));
}

__device__ __forceinline__ void copy4(float *to, const float *from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(sharedAddress(to)), "l"(from));
}

__device__ __forceinline__ void copied() { asm volatile("cp.async.wait_all;"); }

/** Copies since the last time are a group; all but the last groups are done. */
__device__ __forceinline__ void copyGroup() { asm volatile("cp.async.commit_group;"); }
template <int GROUPS> __device__ __forceinline__ void copiedBut() { asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS)); }
`;

/** Needs COLUMNS16, a multiple of 16. */
export const matrices: string = `
/** Numbers of a row in shared memory: eight rows of 16 bytes lie in different banks. */
#define PITCH(n) ((n) + 8)

#define LANE (threadIdx.x % 32)
#define WARP (threadIdx.x / 32)
#define ROW (LANE / 4)
#define PAIR (LANE % 4 * 2)

/** Where a lane's row begins of a matrix [16, 16] that is the left factor as it lies, */
__device__ __forceinline__ const half_t *leftRow(const half_t *m, int pitch) { return m + LANE % 16 * pitch + LANE / 16 * 8; }
/** or the right one, transposed: loadMatrices for [columns, rows], */
__device__ __forceinline__ const half_t *rightRow(const half_t *m, int pitch) {
  return m + (LANE % 8 + LANE / 16 * 8) * pitch + LANE / 8 % 2 * 8;
}
/** or the left one, transposed: loadTransposed for [columns, rows]. The right one as it lies: loadTransposed at leftRow. */
__device__ __forceinline__ const half_t *leftTransposed(const half_t *m, int pitch) { return rightRow(m, pitch); }

/** Both numbers times others. */
__device__ __forceinline__ half2_t scaled(half2_t x, float first, float second) {
  const float2 y = toFloats(x);
  return toHalves(y.x * first, y.y * second);
}

/** A right factor [16, 8] whose first column is one number in every row, or is read from a vector, and the others are 0. */
#define ONES (LANE < 4 ? 0x3c003c00u : 0u)
__device__ __forceinline__ half2_t firstColumn(const half_t *vector, int half) {
  return LANE < 4 ? *(const half2_t *)(vector + half * 8 + PAIR) : 0u;
}

/** sums [16, COLUMNS16] += a [16, 16] m [16, COLUMNS16], in shared memory */
__device__ __forceinline__ void multiplyRows(float (&sums)[COLUMNS16 / 8][4], const half2_t (&a)[4], const half_t *m) {
#pragma unroll
  for (int n = 0; n < COLUMNS16 / 8; n += 2) {
    half2_t b[4];
    loadTransposed(b, leftRow(m + n * 8, PITCH(COLUMNS16)));
    multiply(sums[n], a, b[0], b[1]);
    multiply(sums[n + 1], a, b[2], b[3]);
  }
}
`;
