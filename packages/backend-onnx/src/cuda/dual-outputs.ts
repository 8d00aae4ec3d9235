// CUDA C of what queries read, a chunk and head a block, 16 queries a warp (Yang et al., arXiv 2312.06635, section 4; L as in
// dual-states.ts):
//   o_t = sum_i gamma_i 2^L_it phi(q_t)^T S_i + sum_(s <= t) A_ts [v_s, 1],  A_ts = sum_i gamma_i phi(q_t).(2^(L_it - L_is) phi(k_s))

export const gammas: string = `
/** softmax(mix) of a state */
__device__ __forceinline__ float gammaOf(const Given &in, int head, int state) {
  const float *mix = in.mix + (MIXES == 1 ? 0 : head) * STATES;
  float top = mix[0], sum = 0;
  for (int i = 1; i < STATES; i++) top = fmaxf(top, mix[i]);
  for (int i = 0; i < STATES; i++) sum += __expf(mix[i] - top);
  return __expf(mix[state] - top) / sum;
}
`;

export const chunks: string = `
#define PART (FEATURES16 < 128 ? FEATURES16 : 128)

struct Chunk {
  int index, first, count, head, kv;
};

/** Of 16 queries: columns, and the column of ones. */
struct Sums {
  float of[COLUMNS16 / 8][4], weight[4];
  __device__ __forceinline__ void scale(int half, float by) {
#pragma unroll
    for (int n = 0; n < COLUMNS16 / 8; n++) {
      of[n][half * 2] *= by;
      of[n][half * 2 + 1] *= by;
    }
    weight[half * 2] *= by;
  }
};

/** rows x length of a matrix to shared memory [MOST, PITCH(LENGTH)], zeros for the rest. */
template <int MOST, int LENGTH, typename T>
__device__ __forceinline__ void stage(T *to, const T *from, int stride, int rows, int length) {
  const int across = LENGTH * sizeof(T) / 16, step = 16 / sizeof(T);
  for (int e = threadIdx.x; e < MOST * across; e += blockDim.x) {
    const int r = e / across, c = e % across * step;
    const bool there = r < rows && c < length;
    copy16(to + r * PITCH(LENGTH) + c, there ? from + (size_t)r * stride + c : from, there);
  }
}

/** sums += y S of a state before the chunk; y(features 16 d to 16 d + 15) is a left factor. entries [PART, PITCH(COLUMNS16)]. */
template <typename Left>
__device__ __forceinline__ void readState(Sums &sums, half_t *entries, const Given &in, const Chunk &chunk, int state, Left y) {
  __shared__ half_t ones[NORMALISER ? PART : 2];
#pragma unroll
  for (int part = 0; part < FEATURES16; part += PART) {
    const size_t at = (((size_t)chunk.index * STATES + state) * KV_HEADS + chunk.kv) * FEATURES + part;
    __syncthreads();
    stage<PART, COLUMNS16>(entries, in.starts + at * COLUMNS, COLUMNS, FEATURES - part, COLUMNS);
    if (NORMALISER)
      for (int f = threadIdx.x; f < PART; f += blockDim.x) ones[f] = part + f < FEATURES ? in.sums[at + f] : 0;
    copied();
    __syncthreads();
#pragma unroll
    for (int d = 0; d < PART / 16; d++) {
      half2_t a[4];
      y(a, part / 16 + d);
      multiplyRows(sums.of, a, entries + d * 16 * PITCH(COLUMNS16));
      if (NORMALISER) multiply(sums.weight, a, firstColumn(ones + d * 16, 0), firstColumn(ones + d * 16, 1));
    }
  }
}
`;

/** With a decay a state and token the states share the product of queries and keys. lines [STATES, CHUNK]: L. */
export const scalarScores: string = `
__device__ __forceinline__ void readChunk(Sums &sums, float (&a)[CHUNK / 8][4], const half2_t (&x)[FEATURES16 / 16][4], const half_t *queries,
    const half_t *keys, void *space, const Given &in, const Chunk &chunk, float share, float grown) {
  __shared__ float lines[STATES * CHUNK], gammas[STATES];
  if (threadIdx.x < STATES) gammas[threadIdx.x] = share * gammaOf(in, chunk.head, threadIdx.x);
  for (int e = threadIdx.x; e < STATES * CHUNK; e += blockDim.x)
    lines[e] = in.decays[decayAt(chunk.first + min(e % CHUNK, chunk.count - 1), e / CHUNK, chunk.kv, 0)];
#pragma unroll
  for (int d = 0; d < FEATURES16 / 16; d++)
#pragma unroll
    for (int n = 0; n < CHUNK / 8; n += 2) {
      if (n > 2 * WARP) break;
      half2_t b[4];
      loadMatrices(b, rightRow(keys + n * 8 * PITCH(FEATURES16) + d * 16, PITCH(FEATURES16)));
      multiply(a[n], x[d], b[0], b[1]);
      multiply(a[n + 1], x[d], b[2], b[3]);
    }
  __syncthreads();
#pragma unroll 1
  for (int i = 0; i < STATES; i++) {
    const float *line = lines + i * CHUNK + WARP * 16 + ROW, by[2] = {gammas[i] * grown * power(line[0]), gammas[i] * grown * power(line[8])};
    readState(sums, (half_t *)space, in, chunk, i, [&](half2_t (&y)[4], int d) {
#pragma unroll
      for (int h = 0; h < 4; h++) y[h] = scaled(x[d][h], by[h % 2], by[h % 2]);
    });
  }
#pragma unroll
  for (int n = 0; n < CHUNK / 8; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      if (n > 2 * WARP + 1) break;
      const int query = WARP * 16 + ROW + e / 2 * 8, key = n * 8 + PAIR + e % 2;
      float by = 0; // where the key is later anything, perhaps infinite
#pragma unroll
      for (int i = 0; i < STATES; i++) by += gammas[i] * power(lines[i * CHUNK + query] - lines[i * CHUNK + key]);
      a[n][e] *= by;
    }
}
`;

/**
 * With a decay a feature: 2^(L_t - L_s) is split over both factors, at the first of the 16 queries, for earlier keys; of the same 16
 * tokens pair by pair. `space` has L of a state, [CHUNK, PITCH(FEATURES16)], and then the state.
 */
export const vectorScores: string = `
__device__ __forceinline__ void earlierKeys(float (&a)[CHUNK / 8][4], half2_t (&y)[4], const half2_t (&x)[4], const half_t *keys, const float *fades,
    int d, float mixed, float grown) {
  const float *own = fades + WARP * 16 * PITCH(FEATURES16) + d * 16 + PAIR;
  float2 first[2], to[4];
#pragma unroll
  for (int h = 0; h < 2; h++) first[h] = *(const float2 *)(own + h * 8);
#pragma unroll
  for (int h = 0; h < 4; h++) {
    to[h] = *(const float2 *)(own + (ROW + h % 2 * 8) * PITCH(FEATURES16) + h / 2 * 8);
    y[h] = scaled(x[h], mixed * power(to[h].x - first[h / 2].x), mixed * power(to[h].y - first[h / 2].y));
  }
#pragma unroll
  for (int n = 0; n < CHUNK / 8 - 2; n += 2) {
    if (n >= 2 * WARP) break;
    half2_t b[4];
    loadMatrices(b, rightRow(keys + n * 8 * PITCH(FEATURES16) + d * 16, PITCH(FEATURES16)));
#pragma unroll
    for (int h = 0; h < 4; h++) {
      const float2 from = *(const float2 *)(fades + (n * 8 + h / 2 * 8 + ROW) * PITCH(FEATURES16) + d * 16 + h % 2 * 8 + PAIR);
      b[h] = scaled(b[h], power(first[h % 2].x - from.x), power(first[h % 2].y - from.y));
    }
    multiply(a[n], y, b[0], b[1]);
    multiply(a[n + 1], y, b[2], b[3]);
  }
#pragma unroll
  for (int h = 0; h < 4; h++) y[h] = scaled(x[h], mixed * grown * power(to[h].x), mixed * grown * power(to[h].y));
}

struct Four {
  float x[4];
};
__device__ __forceinline__ Four four(const half_t *from) {
  const uint2 both = *(const uint2 *)from;
  const float2 low = toFloats(both.x), high = toFloats(both.y);
  return {low.x, low.y, high.x, high.y};
}
__device__ __forceinline__ Four four(const float *from) {
  const float4 all = *(const float4 *)from;
  return {all.x, all.y, all.z, all.w};
}

/** near: rows ROW and ROW + 8 with keys PAIR, PAIR + 1, then ROW + 8 with PAIR + 8, PAIR + 9; the others are later. */
__device__ __forceinline__ void sameKeys(float (&near)[6], const half_t *queries, const half_t *keys, const float *fades, float mixed) {
  const int query = (WARP * 16 + ROW) * PITCH(FEATURES16), key = (WARP * 16 + PAIR) * PITCH(FEATURES16);
  float sum[6] = {};
#pragma unroll 2
  for (int c = 0; c < FEATURES; c += 4) {
    Four q[2], k[4], to[2], from[4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      q[h] = four(queries + query + h * 8 * PITCH(FEATURES16) + c);
      to[h] = four(fades + query + h * 8 * PITCH(FEATURES16) + c);
    }
#pragma unroll
    for (int h = 0; h < 4; h++) {
      k[h] = four(keys + key + (h % 2 + h / 2 * 8) * PITCH(FEATURES16) + c);
      from[h] = four(fades + key + (h % 2 + h / 2 * 8) * PITCH(FEATURES16) + c);
    }
    const int rows[6] = {0, 0, 1, 1, 1, 1}, columns[6] = {0, 1, 0, 1, 2, 3};
#pragma unroll
    for (int p = 0; p < 6; p++)
#pragma unroll
      for (int j = 0; j < 4; j++)
        sum[p] += q[rows[p]].x[j] * k[columns[p]].x[j] * power(to[rows[p]].x[j] - from[columns[p]].x[j]);
  }
#pragma unroll
  for (int p = 0; p < 6; p++) near[p] += mixed * sum[p];
}

__device__ __forceinline__ void readChunk(Sums &sums, float (&a)[CHUNK / 8][4], const half2_t (&x)[FEATURES16 / 16][4], const half_t *queries,
    const half_t *keys, void *space, const Given &in, const Chunk &chunk, float share, float grown) {
  float *fades = (float *)space, near[6] = {};
#pragma unroll 1
  for (int i = 0; i < STATES; i++) {
    const float mixed = share * gammaOf(in, chunk.head, i);
    __syncthreads();
    stage<CHUNK, FEATURES16>(fades, in.decays + decayAt(chunk.first, i, chunk.kv, 0), GATES, chunk.count, FEATURES);
    copied();
    __syncthreads();
    half2_t y[FEATURES16 / 16][4];
#pragma unroll
    for (int d = 0; d < FEATURES16 / 16; d++) earlierKeys(a, y[d], x[d], keys, fades, d, mixed, grown);
    sameKeys(near, queries, keys, fades, mixed);
    readState(sums, (half_t *)space, in, chunk, i, [&](half2_t (&left)[4], int d) {
#pragma unroll
      for (int h = 0; h < 4; h++) left[h] = y[d][h];
    });
  }
#pragma unroll
  for (int n = 0; n < CHUNK / 8; n++)
    if (n / 2 == WARP)
#pragma unroll
      for (int e = 0; e < 4; e++) a[n][e] = n % 2 == 0 ? near[e] : e < 2 ? 0 : near[e + 2];
}
`;

/** o [T, HEADS, COLUMNS] */
export const results: string = `
extern "C" __global__ void __launch_bounds__(CHUNK * 2, RESIDENT) outputs(ARGUMENTS) {
  GIVEN;
  extern __shared__ __align__(16) unsigned char shared[];
  half_t *queries = (half_t *)shared, *keys = queries + CHUNK * PITCH(FEATURES16), *values = (half_t *)(shared + VALUES_AT);
  const int first = blockIdx.y * CHUNK, past = (int)in.past[0];
  const Chunk chunk = {(int)blockIdx.y, first, min(CHUNK, tokens - first), (int)blockIdx.x, (int)blockIdx.x / (HEADS / KV_HEADS)};
  Sums sums = {};
  float share = SCALE;
#if WINDOW
  exactPart(sums, shared, in, chunk);
  const float logWeight = in.logWeight[chunk.head], excess = fmaxf(logWeight, 0);
  for (int half = 0; half < 2; half++) sums.scale(half, power(-excess * LOG2E));
  share = power((logWeight - excess) * LOG2E);
#endif
  stage<CHUNK, FEATURES16>(queries, PHI_Q + ((size_t)first * HEADS + chunk.head) * FEATURES, HEADS * FEATURES, chunk.count, FEATURES);
  stage<CHUNK, FEATURES16>(keys, PHI_K + ((size_t)first * KV_HEADS + chunk.kv) * FEATURES, KV_HEADS * FEATURES, chunk.count, FEATURES);
  for (int e = threadIdx.x; e < CHUNK * COLUMNS16 / 8; e += blockDim.x) {
    const int t = e / (COLUMNS16 / 8), c = e % (COLUMNS16 / 8) * 8;
    const Entering token = entering(first + t, past);
    const bool there = t < chunk.count && c < COLUMNS && token.there;
    copy16(values + t * PITCH(COLUMNS16) + c, there ? valueOf(in, token, chunk.kv) + c : in.v, there);
  }
  copied();
  __syncthreads();
  half2_t x[FEATURES16 / 16][4];
#pragma unroll
  for (int d = 0; d < FEATURES16 / 16; d++) loadMatrices(x[d], leftRow(queries + WARP * 16 * PITCH(FEATURES16) + d * 16, PITCH(FEATURES16)));
  float a[CHUNK / 8][4] = {};
  readChunk(sums, a, x, queries, keys, shared + SPACE_AT, in, chunk, share, growth(past + first));
#pragma unroll
  for (int n = 0; n < CHUNK / 8; n += 2) {
    if (n > 2 * WARP) break;
    half2_t y[4];
#pragma unroll
    for (int h = 0; h < 4; h++) {
      const int query = WARP * 16 + ROW + h % 2 * 8, key = n * 8 + h / 2 * 8 + PAIR;
      const float *both = &a[n + h / 2][h % 2 * 2];
      y[h] = toHalves(key <= query ? both[0] : 0, key < query ? both[1] : 0);
    }
    multiplyRows(sums.of, y, values + n * 8 * PITCH(COLUMNS16));
    if (NORMALISER) multiply(sums.weight, y, ONES, ONES);
  }
  __syncthreads();
  half_t *rows = (half_t *)shared + WARP * 16 * PITCH(COLUMNS16); // of a warp
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const float by = NORMALISER ? 1 / __shfl_sync(~0u, sums.weight[half * 2], LANE & ~3) : 1;
#pragma unroll
    for (int n = 0; n < COLUMNS16 / 8; n++)
      *(half2_t *)(rows + (ROW + half * 8) * PITCH(COLUMNS16) + n * 8 + PAIR) =
        toHalves(sums.of[n][half * 2] * by, sums.of[n][half * 2 + 1] * by);
  }
  __syncwarp();
  for (int e = LANE; e < 16 * COLUMNS / 8; e += 32) {
    const int r = e / (COLUMNS / 8), c = e % (COLUMNS / 8) * 8, t = WARP * 16 + r;
    if (t < chunk.count)
      *(uint4 *)(in.o + ((size_t)(first + t) * HEADS + chunk.head) * COLUMNS + c) = *(const uint4 *)(rows + r * PITCH(COLUMNS16) + c);
  }
}
`;
