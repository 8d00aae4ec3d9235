// CUDA C of the states of dual linear attention over many tokens, in chunks (Yang et al., arXiv 2312.06635, section 4). L is the sum
// of log2 decays from the start of a chunk; no exponent is positive. The constants are those of dual-operator.ts.

/** What the states take in, and what is the same for all kernels. */
export const entering: string = `
#define GATES (STATES * KV_HEADS * (VECTOR ? FEATURES : 1))
#define FEATURES16 ((FEATURES + 15) / 16 * 16)
#define COLUMNS16 ((COLUMNS + 15) / 16 * 16)
#define RING (SINKS + WINDOW)
#define LOG2E 1.4426950408889634f
#define INFINITY_F __int_as_float(0x7f800000)

/** What enters the states at token t of the step: a token of the step, or an entry of the ring, or nothing. */
struct Entering {
  bool there, inRing;
  int at, position;
};
__device__ __forceinline__ Entering entering(int t, int past) {
#if !READ
  return {t < past, false, t, t};
#elif WINDOW
  const int position = past + t - WINDOW;
  if (position < SINKS) return {false, false, t, 0};
  if (position < past) return {true, true, SINKS + (position - SINKS) % WINDOW, position};
  return {true, false, position - past, position};
#else
  return {true, false, t, past + t};
#endif
}

/** Its value in a head, [COLUMNS] */
__device__ __forceinline__ const half_t *valueOf(const Given &in, Entering token, int kv) {
  if (token.inRing) return in.ringValues + ((size_t)kv * RING + token.at) * COLUMNS;
  return in.v + ((size_t)token.at * KV_HEADS + kv) * COLUMNS;
}

/** Where L of a feature lies. */
__device__ __forceinline__ size_t decayAt(int t, int state, int kv, int feature) {
  return (size_t)t * GATES + (VECTOR ? (state * KV_HEADS + kv) * FEATURES + feature : state * KV_HEADS + kv);
}

/** A power of two that states have about grown by after so many tokens: they would grow beyond what float16 holds. */
__device__ __forceinline__ float growth(int tokens) { return exp2f((float)(31 - __clz(1 + tokens / 256))); }
`;

/** decays [T, GATES]: L, a thread a gate and chunk. */
export const cumulate: string = `
extern "C" __global__ void cumulate(ARGUMENTS) {
  GIVEN;
  const int g = blockIdx.x * blockDim.x + threadIdx.x;
  if (g >= GATES) return;
  const int first = blockIdx.y * CHUNK, count = min(CHUNK, tokens - first), past = (int)in.past[0];
  float sum = 0;
  for (int t = 0; t < count; t += 8) {
    float decay[8]; // loads before stores: the compiler may not change their order
#pragma unroll
    for (int n = 0; n < 8; n++) {
      const Entering token = entering(first + min(t + n, count - 1), past);
      const size_t at = (size_t)token.at * GATES + g;
      const float logit = token.inRing ? in.ringGates[at] : toFloat(in.gates[at]);
      decay[n] = token.there ? (fminf(logit, 0) - log1pf(__expf(-fabsf(logit)))) * RATE : 0;
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
      sum += decay[n];
      if (t + n < count) in.decays[(size_t)(first + t + n) * GATES + g] = sum;
    }
  }
}
`;

/**
 * From chunk to chunk S <- 2^L_C S + sum_s 2^(L_C - L_s) phi(k_s) [v_s, 1]^T. A block has SLICE columns of one state, a warp 16 or 32 of
 * their features. What the states are before every chunk is kept in float16, by the growth: starts [n, St, g, F, V], and sums
 * [n, St, g, F], the column of ones.
 */
export const walk: string = `
#define WARP_MATRICES (FEATURES16 > 128 ? 2 : 1)
#define WALK_THREADS (FEATURES16 / 16 / WARP_MATRICES * 32)
#define KEY_LOADS ((CHUNK * FEATURES16 / 8 + WALK_THREADS - 1) / WALK_THREADS)
#define VALUE_LOADS ((CHUNK * SLICE / 8 + WALK_THREADS - 1) / WALK_THREADS)

/** The next chunk on its way to shared memory: a thread has eight features of some keys, and eight columns of some values. */
struct Loads {
  uint4 keys[KEY_LOADS], values[VALUE_LOADS];
  float decays[KEY_LOADS][VECTOR ? 8 : 1], last[VECTOR ? 8 : 1];
};

__device__ __forceinline__ void fetch(Loads &next, const Given &in, int chunk, int tokens, int column, int state, int kv) {
  const int first = chunk * CHUNK, last = min(first + CHUNK, tokens) - 1, past = (int)in.past[0];
  const int f = threadIdx.x % (FEATURES16 / 8) * 8, known = f < FEATURES ? f : 0;
#pragma unroll
  for (int n = 0; n < KEY_LOADS; n++) {
    const int t = first + (n * WALK_THREADS + threadIdx.x) / (FEATURES16 / 8);
    const bool there = t <= last && t < first + CHUNK && f < FEATURES;
    next.keys[n] = there ? *(const uint4 *)(PHI_K + ((size_t)t * KV_HEADS + kv) * FEATURES + f) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int j = 0; j < (VECTOR ? 8 : 1); j++) next.decays[n][j] = in.decays[decayAt(min(t, last), state, kv, known + j)];
  }
#pragma unroll
  for (int j = 0; j < (VECTOR ? 8 : 1); j++) next.last[j] = in.decays[decayAt(last, state, kv, known + j)];
#pragma unroll
  for (int n = 0; n < VALUE_LOADS; n++) {
    const int e = n * WALK_THREADS + threadIdx.x, t = first + e / (SLICE / 8), c = column + e % (SLICE / 8) * 8;
    const Entering token = entering(t, past);
    const bool there = t <= last && t < first + CHUNK && c < COLUMNS && token.there;
    next.values[n] = there ? *(const uint4 *)(valueOf(in, token, kv) + c) : make_uint4(0, 0, 0, 0);
  }
}

/** keys [CHUNK, PITCH(FEATURES16)], decayed to the end of the chunk; values [CHUNK, PITCH(SLICE)]; fades [FEATURES16 or 1] = 2^L_C */
__device__ __forceinline__ void store(const Loads &next, half_t *keys, half_t *values, float *fades) {
  const int f = threadIdx.x % (FEATURES16 / 8) * 8;
#pragma unroll
  for (int n = 0; n < KEY_LOADS; n++) {
    const int t = (n * WALK_THREADS + threadIdx.x) / (FEATURES16 / 8);
    float by[8];
#pragma unroll
    for (int j = 0; j < 8; j++) by[j] = power(next.last[VECTOR ? j : 0] - next.decays[n][VECTOR ? j : 0]);
    const uint4 x = next.keys[n];
    if (t < CHUNK)
      *(uint4 *)(keys + t * PITCH(FEATURES16) + f) =
        make_uint4(scaled(x.x, by[0], by[1]), scaled(x.y, by[2], by[3]), scaled(x.z, by[4], by[5]), scaled(x.w, by[6], by[7]));
  }
  if (threadIdx.x < (VECTOR ? FEATURES16 / 8 : 1))
#pragma unroll
    for (int j = 0; j < (VECTOR ? 8 : 1); j++) fades[f + j] = power(next.last[j]);
#pragma unroll
  for (int n = 0; n < VALUE_LOADS; n++) {
    const int e = n * WALK_THREADS + threadIdx.x;
    if (e < CHUNK * SLICE / 8) *(uint4 *)(values + e / (SLICE / 8) * PITCH(SLICE) + e % (SLICE / 8) * 8) = next.values[n];
  }
}

extern "C" __global__ void __launch_bounds__(WALK_THREADS) walk(ARGUMENTS) {
  GIVEN;
  extern __shared__ __align__(16) unsigned char shared[];
  half_t *keys = (half_t *)shared, *values = keys + CHUNK * PITCH(FEATURES16);
  __shared__ float fades[VECTOR ? FEATURES16 : 1];
  const int column0 = blockIdx.x * SLICE, state = blockIdx.y, kv = blockIdx.z;
  const int feature0 = WARP * WARP_MATRICES * 16 + ROW, chunks = (tokens + CHUNK - 1) / CHUNK;
  const size_t own = (size_t)(state * KV_HEADS + kv) * FEATURES;
  const bool summing = NORMALISER && PAIR == 0;
  float s[WARP_MATRICES][SLICE / 8][4], sums[WARP_MATRICES][4];
#pragma unroll
  for (int m = 0; m < WARP_MATRICES; m++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int f = feature0 + m * 16 + e / 2 * 8;
      const float *row = in.before + (own + f) * (COLUMNS + NORMALISER);
#pragma unroll
      for (int n = 0; n < SLICE / 8; n++) {
        const int c = column0 + n * 8 + PAIR + e % 2;
        s[m][n][e] = READ && f < FEATURES && c < COLUMNS ? row[c] : 0;
      }
      sums[m][e] = READ && summing && e % 2 == 0 && f < FEATURES ? row[COLUMNS] : 0;
    }
  Loads next;
  fetch(next, in, 0, tokens, column0, state, kv);
  for (int chunk = 0; chunk < chunks; chunk++) {
    __syncthreads();
    store(next, keys, values, fades);
    __syncthreads();
    if (chunk + 1 < chunks) fetch(next, in, chunk + 1, tokens, column0, state, kv);
    const float shrink = 1 / growth((int)in.past[0] + chunk * CHUNK);
    const size_t start = (size_t)chunk * STATES * KV_HEADS * FEATURES + own;
#pragma unroll
    for (int m = 0; m < WARP_MATRICES; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int f = feature0 + m * 16 + half * 8;
        const float fade = fades[VECTOR ? f : 0];
#pragma unroll
        for (int n = 0; n < SLICE / 8; n++) {
          float *x = &s[m][n][half * 2];
          const int c = column0 + n * 8 + PAIR;
          if (READ && f < FEATURES && c < COLUMNS) *(half2_t *)(in.starts + (start + f) * COLUMNS + c) = toHalves(x[0] * shrink, x[1] * shrink);
          x[0] *= fade;
          x[1] *= fade;
        }
        if (READ && summing && f < FEATURES && column0 == 0) in.sums[start + f] = toHalf(sums[m][half * 2] * shrink);
        sums[m][half * 2] *= fade;
      }
#pragma unroll
    for (int t = 0; t < CHUNK; t += 16) {
      half2_t a[WARP_MATRICES][4];
#pragma unroll
      for (int m = 0; m < WARP_MATRICES; m++)
        loadTransposed(a[m], leftTransposed(keys + t * PITCH(FEATURES16) + (WARP * WARP_MATRICES + m) * 16, PITCH(FEATURES16)));
#pragma unroll
      for (int n = 0; n < SLICE / 8; n += 2) {
        half2_t b[4];
        loadTransposed(b, leftRow(values + t * PITCH(SLICE) + n * 8, PITCH(SLICE)));
#pragma unroll
        for (int m = 0; m < WARP_MATRICES; m++) {
          multiply(s[m][n], a[m], b[0], b[1]);
          multiply(s[m][n + 1], a[m], b[2], b[3]);
        }
      }
      if (NORMALISER)
#pragma unroll
        for (int m = 0; m < WARP_MATRICES; m++) multiply(sums[m], a[m], ONES, ONES);
    }
  }
#pragma unroll
  for (int m = 0; m < WARP_MATRICES; m++)
#pragma unroll
    for (int e = 0; e < 4; e++) {
      const int f = feature0 + m * 16 + e / 2 * 8;
      if (f >= FEATURES) continue;
      float *row = in.after + (own + f) * (COLUMNS + NORMALISER);
#pragma unroll
      for (int n = 0; n < SLICE / 8; n++) {
        const int c = column0 + n * 8 + PAIR + e % 2;
        if (c < COLUMNS) row[c] = s[m][n][e];
      }
      if (summing && e % 2 == 0 && column0 == 0) row[COLUMNS] = sums[m][e];
    }
}
`;
