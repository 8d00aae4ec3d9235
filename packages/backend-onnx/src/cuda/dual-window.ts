// CUDA C of the exact part of dual linear attention: softmax over the last tokens and the first, and the ring that they lie in. The
// constants are those of dual-operator.ts.

/**
 * sums = e^-m sum over what the chunk's queries see of e^s [v, 1], m the largest score of a query. Index j of it is sink j, then the
 * tokens from the window of the first query on. Needs three times [CHUNK, PITCH(COLUMNS16)] of shared memory.
 */
export const exactPart: string = `
__device__ __forceinline__ void exactPart(Sums &sums, unsigned char *shared, const Given &in, const Chunk &chunk) {
  half_t *queries = (half_t *)shared, *keys = queries + CHUNK * PITCH(COLUMNS16), *values = keys + CHUNK * PITCH(COLUMNS16);
  const int past = (int)in.past[0], start = past + chunk.first, end = start + chunk.count;
  const int oldest = start - WINDOW + 1 - SINKS, seen = SINKS + WINDOW - 1 + chunk.count;
  stage<CHUNK, COLUMNS16>(queries, in.turnedQ + ((size_t)chunk.first * HEADS + chunk.head) * COLUMNS, HEADS * COLUMNS, chunk.count, COLUMNS);
  float top[2] = {-1e30f, -1e30f};
  for (int from = 0; from < seen; from += CHUNK) {
    __syncthreads();
    for (int e = threadIdx.x; e < CHUNK * COLUMNS16 / 8; e += blockDim.x) {
      const int j = from + e / (COLUMNS16 / 8), c = e % (COLUMNS16 / 8) * 8, token = j < SINKS ? j : oldest + j;
      const bool there = c < COLUMNS && token < end && (j < SINKS || token >= SINKS), inRing = token < past;
      const size_t at = inRing ? ((size_t)chunk.kv * RING + (token < SINKS ? token : SINKS + (token - SINKS) % WINDOW)) * COLUMNS
                               : ((size_t)(token - past) * KV_HEADS + chunk.kv) * COLUMNS;
      const int to = e / (COLUMNS16 / 8) * PITCH(COLUMNS16) + c;
      copy16(keys + to, there ? (inRing ? in.ringKeys : in.turnedK) + at + c : in.v, there);
      copy16(values + to, there ? (inRing ? in.ringValues : in.v) + at + c : in.v, there);
    }
    copied();
    __syncthreads();
    float a[CHUNK / 8][4] = {};
#pragma unroll
    for (int c = 0; c < COLUMNS16; c += 16) {
      half2_t x[4];
      loadMatrices(x, leftRow(queries + WARP * 16 * PITCH(COLUMNS16) + c, PITCH(COLUMNS16)));
#pragma unroll
      for (int n = 0; n < CHUNK / 8; n += 2) {
        if (from + n * 8 >= seen) break;
        half2_t b[4];
        loadMatrices(b, rightRow(keys + n * 8 * PITCH(COLUMNS16) + c, PITCH(COLUMNS16)));
        multiply(a[n], x, b[0], b[1]);
        multiply(a[n + 1], x, b[2], b[3]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int query = start + WARP * 16 + ROW + half * 8;
      float largest = top[half];
#pragma unroll
      for (int n = 0; n < CHUNK / 8; n++)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) {
          const int j = from + n * 8 + PAIR + e % 2, token = j < SINKS ? j : oldest + j;
          const bool sees = token <= query && (j < SINKS || (token > query - WINDOW && token >= SINKS));
          a[n][e] = sees ? a[n][e] * (LOG2E * EXACT_SCALE) : -INFINITY_F;
          largest = fmaxf(largest, a[n][e]);
        }
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      sums.scale(half, power(top[half] - largest));
      top[half] = largest;
#pragma unroll
      for (int n = 0; n < CHUNK / 8; n++)
#pragma unroll
        for (int e = half * 2; e < half * 2 + 2; e++) a[n][e] = power(a[n][e] - largest);
    }
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n += 2) {
      if (from + n * 8 >= seen) break;
      const half2_t y[4] = {toHalves(a[n][0], a[n][1]), toHalves(a[n][2], a[n][3]), toHalves(a[n + 1][0], a[n + 1][1]), toHalves(a[n + 1][2], a[n + 1][3])};
      multiplyRows(sums.of, y, values + n * 8 * PITCH(COLUMNS16));
      multiply(sums.weight, y, ONES, ONES);
    }
  }
  __syncthreads();
}
`;

/** The ring after the step, a block an entry; what a step does not write stays. */
export const keep: string = `
extern "C" __global__ void keep(ARGUMENTS) {
  GIVEN;
  const int entry = blockIdx.x, past = (int)in.past[0], end = past + tokens, beyond = end - 1 - entry;
  const int token = entry < SINKS ? entry : beyond < 0 ? -1 : entry + beyond / WINDOW * WINDOW;
  const bool isNew = token >= past && token < end;
  for (int e = threadIdx.x; e < KV_HEADS * COLUMNS / 8; e += blockDim.x) {
    const int kv = e / (COLUMNS / 8), c = e % (COLUMNS / 8) * 8;
    const size_t to = ((size_t)kv * RING + entry) * COLUMNS + c, from = ((size_t)(token - past) * KV_HEADS + kv) * COLUMNS + c;
    *(uint4 *)(in.keptKeys + to) = *(const uint4 *)(isNew ? in.turnedK + from : in.ringKeys + to);
    *(uint4 *)(in.keptValues + to) = *(const uint4 *)(isNew ? in.v + from : in.ringValues + to);
  }
  for (int g = threadIdx.x; g < GATES; g += blockDim.x) {
    const int to = entry * GATES + g;
    in.keptGates[to] = isNew ? toFloat(in.gates[(size_t)(token - past) * GATES + g]) : in.ringGates[to];
  }
}
`;
