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
/** Floats of a row of L: one a state, or one a feature. */
#define DECAYS (VECTOR ? PITCH(FEATURES16) : 1)

/** A chunk in shared memory: keys [CHUNK, PITCH(FEATURES16)], values [CHUNK, PITCH(SLICE)], L [CHUNK, DECAYS]. */
struct Stage {
  half_t *keys, *values;
  float *decays;
  __device__ __forceinline__ Stage(unsigned char *shared, int chunk)
      : keys((half_t *)(shared + chunk % STAGES * STAGE_BYTES)), values(keys + CHUNK * PITCH(FEATURES16)),
        decays((float *)(values + CHUNK * PITCH(SLICE))) {}
  __device__ __forceinline__ float decay(int t, int f) const { return decays[t * DECAYS + (VECTOR ? f : 0)]; }
};

/** Starts to copy a chunk. Beyond the last token there is none: keys and values are 0, L is what it was. */
__device__ __forceinline__ void fetch(const Stage &to, const Given &in, int chunk, int tokens, int past, int column, int state, int kv) {
  const int first = chunk * CHUNK, last = min(first + CHUNK, tokens) - 1;
  for (int e = threadIdx.x; e < CHUNK * FEATURES16 / 8; e += WALK_THREADS) {
    const int t = e / (FEATURES16 / 8), f = e % (FEATURES16 / 8) * 8;
    const bool there = first + t <= last && f < FEATURES;
    copy16(to.keys + t * PITCH(FEATURES16) + f, there ? PHI_K + ((size_t)(first + t) * KV_HEADS + kv) * FEATURES + f : PHI_K, there);
  }
  for (int e = threadIdx.x; e < CHUNK * SLICE / 8; e += WALK_THREADS) {
    const int t = e / (SLICE / 8), c = e % (SLICE / 8) * 8;
    const Entering token = entering(first + t, past);
    const bool there = first + t <= last && column + c < COLUMNS && token.there;
    copy16(to.values + t * PITCH(SLICE) + c, there ? valueOf(in, token, kv) + column + c : in.v, there);
  }
#if VECTOR
  for (int e = threadIdx.x; e < CHUNK * FEATURES16 / 4; e += WALK_THREADS) {
    const int t = e / (FEATURES16 / 4), f = e % (FEATURES16 / 4) * 4;
    copy16(to.decays + t * DECAYS + f, in.decays + decayAt(min(first + t, last), state, kv, f < FEATURES ? f : 0), f < FEATURES);
  }
#else
  for (int t = threadIdx.x; t < CHUNK; t += WALK_THREADS) copy4(to.decays + t, in.decays + decayAt(min(first + t, last), state, kv, 0));
#endif
}

extern "C" __global__ void __launch_bounds__(WALK_THREADS, 1) walk(ARGUMENTS) {
  GIVEN;
  extern __shared__ __align__(16) unsigned char shared[];
  const int column0 = blockIdx.x * SLICE, state = blockIdx.y, kv = blockIdx.z;
  const int feature0 = WARP * WARP_MATRICES * 16 + ROW, chunks = (tokens + CHUNK - 1) / CHUNK;
  const size_t own = (size_t)(state * KV_HEADS + kv) * FEATURES;
  half_t *const rows = (half_t *)(shared + STAGES * STAGE_BYTES) + WARP * WARP_MATRICES * 16 * PITCH(SLICE); // of a warp
  const int past = (int)in.past[0];
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
  for (int chunk = 0; chunk < STAGES - 1; chunk++) {
    if (chunk < chunks) fetch(Stage(shared, chunk), in, chunk, tokens, past, column0, state, kv);
    copyGroup();
  }
  for (int chunk = 0; chunk < chunks; chunk++) {
    const Stage now(shared, chunk);
    const int ahead = chunk + STAGES - 1;
    copiedBut<STAGES - 2>();
    __syncthreads();
    if (ahead < chunks) fetch(Stage(shared, ahead), in, ahead, tokens, past, column0, state, kv);
    copyGroup();
    const float shrink = 1 / growth(past + chunk * CHUNK);
    const size_t start = (size_t)chunk * STATES * KV_HEADS * FEATURES + own;
    float ends[WARP_MATRICES][2]; // L_C
#pragma unroll
    for (int m = 0; m < WARP_MATRICES; m++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int f = feature0 + m * 16 + half * 8;
        ends[m][half] = now.decay(CHUNK - 1, f);
        const float fade = power(ends[m][half]);
#pragma unroll
        for (int n = 0; n < SLICE / 8; n++) {
          float *x = &s[m][n][half * 2];
          if (READ) *(half2_t *)(rows + (m * 16 + half * 8 + ROW) * PITCH(SLICE) + n * 8 + PAIR) = toHalves(x[0] * shrink, x[1] * shrink);
          x[0] *= fade;
          x[1] *= fade;
        }
        if (READ && summing && f < FEATURES && column0 == 0) in.sums[start + f] = toHalf(sums[m][half * 2] * shrink);
        sums[m][half * 2] *= fade;
      }
    __syncwarp();
    for (int e = LANE; READ && e < WARP_MATRICES * 16 * SLICE / 8; e += 32) {
      const int r = e / (SLICE / 8), f = WARP * WARP_MATRICES * 16 + r, c = e % (SLICE / 8) * 8;
      if (f < FEATURES && column0 + c < COLUMNS)
        *(uint4 *)(in.starts + (start + f) * COLUMNS + column0 + c) = *(const uint4 *)(rows + r * PITCH(SLICE) + c);
    }
#pragma unroll
    for (int t = 0; t < CHUNK; t += 16) {
      half2_t a[WARP_MATRICES][4];
#pragma unroll
      for (int m = 0; m < WARP_MATRICES; m++) {
        loadTransposed(a[m], leftTransposed(now.keys + t * PITCH(FEATURES16) + (WARP * WARP_MATRICES + m) * 16, PITCH(FEATURES16)));
#pragma unroll
        for (int h = 0; h < 4; h++) {
          const int f = feature0 + m * 16 + h % 2 * 8, token = t + PAIR + h / 2 * 8;
          a[m][h] = scaled(a[m][h], power(ends[m][h % 2] - now.decay(token, f)), power(ends[m][h % 2] - now.decay(token + 1, f)));
        }
      }
#pragma unroll
      for (int n = 0; n < SLICE / 8; n += 2) {
        half2_t b[4];
        loadTransposed(b, leftRow(now.values + t * PITCH(SLICE) + n * 8, PITCH(SLICE)));
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
