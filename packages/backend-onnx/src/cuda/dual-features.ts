// CUDA C of the feature map phi(x) = [e^(W x - c), e^(-W x - c)], c = max |W x|, of queries and of the keys that enter the states.
// The constants are those of dual-operator.ts.

/** phi_q [T, HEADS, FEATURES] and phi_k [T, KV_HEADS, FEATURES], zeros where no token enters: 64 tokens and a head a block of 128 threads. */
export const features: string = `
#define ROWS (FEATURES / 2)
#define ROWS16 ((ROWS + 15) / 16 * 16)
#define MAPPED_TOKENS 64
/** Of rows of tokens, which become rows of features. */
#define TOKEN_PITCH PITCH(COLUMNS16 > ROWS16 ? COLUMNS16 : ROWS16)
#define PHI_Q in.phiQ
#define PHI_K in.phiK

struct Queries {
  const Given &in;
  int tokens;
  __device__ __forceinline__ bool there(int) const { return true; }
  __device__ __forceinline__ void copy(half_t *to, int t, int head, int c) const {
    const bool inside = t < tokens && c < COLUMNS;
    copy16(to, inside ? in.q + ((size_t)t * HEADS + head) * COLUMNS + c : in.q, inside);
  }
};

struct Keys {
  const Given &in;
  int tokens, past;
  __device__ __forceinline__ bool there(int t) const { return entering(t, past).there; }
  __device__ __forceinline__ void copy(half_t *to, int t, int kv, int c) const {
    const Entering token = entering(t, past);
    const bool inside = t < tokens && c < COLUMNS && token.there;
    const half_t *ring = in.ringKeys + ((size_t)kv * RING + token.at) * COLUMNS;
    if (inside && token.inRing && c < TURNED) {
      for (int j = 0; j < 8; j++) to[j] = turnedBack(ring, c + j, token.position);
      return;
    }
    const half_t *key = token.inRing ? ring : in.k + ((size_t)token.at * KV_HEADS + kv) * COLUMNS;
    copy16(to, inside ? key + c : in.k, inside);
  }
  /** A key of the ring is rotated; feature c of it without. */
  __device__ __forceinline__ half_t turnedBack(const half_t *key, int c, int position) const {
#if TURNED
    if (c >= TURNED) return key[c];
    const int pair = c % (TURNED / 2);
    const size_t at = (size_t)position * (TURNED / 2) + pair;
    const float first = toFloat(key[pair]), second = toFloat(key[pair + TURNED / 2]);
    return toHalf(c < TURNED / 2 ? first * in.cosines[at] + second * in.sines[at] : second * in.cosines[at] - first * in.sines[at]);
#else
    return key[c];
#endif
  }
};

template <typename Tokens>
__device__ __forceinline__ void map(unsigned char *shared, const Tokens &of, const half_t *w, half_t *phi, int heads, int tokens) {
  half_t *ws = (half_t *)shared, *xs = ws + ROWS16 * PITCH(COLUMNS16); // [rows, PITCH(COLUMNS16)], [tokens, TOKEN_PITCH]
  const int head = blockIdx.x, first = blockIdx.y * MAPPED_TOKENS;
  for (int e = threadIdx.x; e < ROWS16 * COLUMNS16 / 8; e += blockDim.x) {
    const int r = e / (COLUMNS16 / 8), c = e % (COLUMNS16 / 8) * 8;
    const bool there = r < ROWS && c < COLUMNS;
    copy16(ws + r * PITCH(COLUMNS16) + c, there ? w + ((size_t)head * ROWS + r) * COLUMNS + c : w, there);
  }
  for (int e = threadIdx.x; e < MAPPED_TOKENS * COLUMNS16 / 8; e += blockDim.x) {
    const int t = e / (COLUMNS16 / 8), c = e % (COLUMNS16 / 8) * 8;
    of.copy(xs + t * TOKEN_PITCH + c, first + t, head, c);
  }
  copied();
  __syncthreads();
  half_t *rows = xs + WARP * 16 * TOKEN_PITCH; // of a warp
  float y[ROWS16 / 8][4] = {};
#pragma unroll
  for (int c = 0; c < COLUMNS16; c += 16) {
    half2_t x[4];
    loadMatrices(x, leftRow(rows + c, TOKEN_PITCH));
#pragma unroll
    for (int n = 0; n < ROWS16 / 8; n += 2) {
      half2_t b[4];
      loadMatrices(b, rightRow(ws + n * 8 * PITCH(COLUMNS16) + c, PITCH(COLUMNS16)));
      multiply(y[n], x, b[0], b[1]);
      multiply(y[n + 1], x, b[2], b[3]);
    }
  }
  float top[2] = {}, weight[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int n = 0; n < ROWS16 / 8; n++) top[half] = fmaxf(top[half], fmaxf(fabsf(y[n][half * 2]), fabsf(y[n][half * 2 + 1])));
    top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
    top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
    weight[half] = of.there(first + WARP * 16 + ROW + half * 8);
  }
#pragma unroll
  for (int sign = 0; sign < 2; sign++) {
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < ROWS / 8; n++) {
        const float by = sign ? -LOG2E : LOG2E, bound = top[half] * LOG2E, *pair = &y[n][half * 2];
        *(half2_t *)(rows + (ROW + half * 8) * TOKEN_PITCH + n * 8 + PAIR) =
          toHalves(weight[half] * power(pair[0] * by - bound), weight[half] * power(pair[1] * by - bound));
      }
    __syncwarp();
    for (int e = LANE; e < 16 * ROWS / 8; e += 32) {
      const int r = e / (ROWS / 8), c = e % (ROWS / 8) * 8, t = first + WARP * 16 + r;
      if (t < tokens)
        *(uint4 *)(phi + ((size_t)t * heads + head) * FEATURES + sign * ROWS + c) = *(const uint4 *)(rows + r * TOKEN_PITCH + c);
    }
  }
}

#if READ
extern "C" __global__ void __launch_bounds__(128, 4) mapQueries(ARGUMENTS) {
  GIVEN;
  extern __shared__ __align__(16) unsigned char shared[];
  map(shared, Queries{in, tokens}, in.mapQ, in.phiQ, HEADS, tokens);
}
#endif

extern "C" __global__ void __launch_bounds__(128, 4) mapKeys(ARGUMENTS) {
  GIVEN;
  extern __shared__ __align__(16) unsigned char shared[];
  map(shared, Keys{in, tokens, (int)in.past[0]}, in.mapK, in.phiK, KV_HEADS, tokens);
}
`;

/** Without a map. */
export const noFeatures: string = `
#define PHI_Q in.q
#define PHI_K in.k
`;
