// Runs CUDA C on the CPU, to test kernels without a GPU: a fiber for every thread of a block, one block after the other. Products of
// matrices and loads of them are written out from their definitions (PTX ISA, mma.m16n8k16 and ldmatrix).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

using std::max;
using std::min;
typedef unsigned short half_t;
typedef unsigned half2_t;
typedef unsigned uint32;
struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __shared__ static
#define __align__(n) alignas(n)
#define __expf expf

struct Index { unsigned x, y, z; };
static Index blockIdx, blockDim;
struct Fiber { ucontext_t context; Index thread; bool ended; };
static std::vector<Fiber> fibers;
static size_t current;
static ucontext_t scheduler;
#define threadIdx (fibers[current].thread)
static unsigned char shared[228 * 1024] __attribute__((aligned(128)));

struct Barrier {
  unsigned arrived = 0, turn = 0;
  void wait(unsigned count) {
    const unsigned now = turn;
    if (++arrived == count) arrived = 0, turn++;
    while (turn == now) swapcontext(&fibers[current].context, &scheduler);
  }
};
static Barrier blockBarrier, warpBarriers[32];
static void __syncthreads() { blockBarrier.wait(blockDim.x); }
static void syncWarp() { warpBarriers[threadIdx.x / 32].wait(32); }
static void __syncwarp() { syncWarp(); }

/** What the lanes of a warp show one another. */
struct Lane { half2_t a[4], b[2]; const half_t *row; float value; };
static Lane lanes[32][32];
static Lane *warpLanes() { return lanes[threadIdx.x / 32]; }
static Lane &ownLane() { return warpLanes()[threadIdx.x % 32]; }

static float __shfl_sync(unsigned, float x, int from) {
  ownLane().value = x;
  syncWarp();
  const float y = warpLanes()[from & 31].value;
  syncWarp();
  return y;
}
static float __shfl_xor_sync(unsigned mask, float x, int by) { return __shfl_sync(mask, x, (int)(threadIdx.x % 32) ^ by); }
static int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static float __int_as_float(int x) { float y; memcpy(&y, &x, 4); return y; }

static float toFloat(half_t x) { _Float16 y; memcpy(&y, &x, 2); return (float)y; }
static half_t toHalf(float x) { const _Float16 y = (_Float16)x; half_t z; memcpy(&z, &y, 2); return z; }
static float2 toFloats(half2_t x) { return {toFloat((half_t)x), toFloat((half_t)(x >> 16))}; }
static half2_t toHalves(float first, float second) { return toHalf(first) | (half2_t)toHalf(second) << 16; }
static float part(half2_t x, int at) { return toFloat((half_t)(x >> 16 * at)); }

static void loadMatrices(half2_t (&m)[4], const half_t *row) {
  ownLane().row = row;
  syncWarp();
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) memcpy(&m[i], warpLanes()[i * 8 + lane / 4].row + lane % 4 * 2, 4);
  syncWarp();
}
static void loadTransposed(half2_t (&m)[4], const half_t *row) {
  ownLane().row = row;
  syncWarp();
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 4; i++) {
    const Lane *rows = warpLanes() + i * 8 + lane % 4 * 2;
    m[i] = rows[0].row[lane / 4] | (half2_t)rows[1].row[lane / 4] << 16;
  }
  syncWarp();
}
static void multiply(float (&sum)[4], const half2_t (&a)[4], half2_t low, half2_t high) {
  Lane &own = ownLane();
  memcpy(own.a, a, sizeof a);
  own.b[0] = low, own.b[1] = high;
  syncWarp();
  const int lane = threadIdx.x % 32;
  for (int e = 0; e < 4; e++) {
    const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
    for (int k = 0; k < 16; k++)
      sum[e] += part(warpLanes()[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2], k % 2) *
                part(warpLanes()[column * 4 + k % 8 / 2].b[k / 8], k % 2);
  }
  syncWarp();
}
static uint4 streamed(const uint4 *from) { return *from; }
static void unpack(float *f, uint4 v) {
  const unsigned words[4] = {v.x, v.y, v.z, v.w};
  for (int i = 0; i < 8; i++) f[i] = part(words[i / 2], i % 2);
}
static float warpSum(float x) {
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
  return x;
}
static void before() {}
/** A cluster of one block. */
static void clusterSync() { __syncthreads(); }
static float ofBlock(const float *p, int) { return *p; }
static float rsqrtf(float x) { return 1 / sqrtf(x); }
static float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
/** Byte i of the result is the one of x and then y that nibble i of the selector names (CUDA Math API). */
static unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = x | (uint64_t)y << 32;
  unsigned z = 0;
  for (int i = 0; i < 4; i++) z |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return z;
}
static float power(float x) { return exp2f(x); }
static void copy16(void *to, const void *from, bool there) { there ? memcpy(to, from, 16) : memset(to, 0, 16); }
static void copy4(float *to, const float *from) { *to = *from; }
static void copied() {}
static void copyGroup() {}
template <int> static void copiedBut() {}

static void (*body)(const uint64_t *);
static const uint64_t *arguments;
static void fiber() {
  body(arguments);
  fibers[current].ended = true;
}

/** A kernel as it is launched. Shared memory begins as numbers that are none. */
static void launch(void (*kernel)(const uint64_t *), unsigned x, unsigned y, unsigned z, unsigned threads, const uint64_t *given) {
  static std::vector<char> stacks(1024 * 65536);
  body = kernel, arguments = given, blockDim = {threads, 1, 1};
  for (unsigned block = 0; block < x * y * z; block++) {
    blockIdx = {block % x, block / x % y, block / x / y};
    memset(shared, 0xff, sizeof shared);
    fibers.assign(threads, {});
    for (unsigned t = 0; t < threads; t++) {
      ucontext_t &context = fibers[t].context;
      fibers[t].thread = {t, 0, 0};
      getcontext(&context);
      context.uc_stack.ss_sp = &stacks[t * 65536];
      context.uc_stack.ss_size = 65536;
      context.uc_link = &scheduler;
      makecontext(&context, fiber, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (current = 0; current < threads; current++)
        if (!fibers[current].ended) left = true, swapcontext(&scheduler, &fibers[current].context);
    }
  }
}

template <typename T> T argument(uint64_t x) {
  if constexpr (std::is_pointer_v<T>) return (T)x;
  else return (T)(int64_t)x;
}
template <typename... T, size_t... I> void call(void (*kernel)(T...), const uint64_t *given, std::index_sequence<I...>) {
  kernel(argument<T>(given[I])...);
}
template <typename... T> void call(void (*kernel)(T...), const uint64_t *given) { call(kernel, given, std::index_sequence_for<T...>{}); }
