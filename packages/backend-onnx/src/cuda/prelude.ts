/** What every source begins with: float16 without a header, which a system with NVRTC alone does not have. */
export const prelude: string = `
typedef unsigned short half_t;
typedef unsigned int uint32;

/** Two float16 in a register, the first in the lower bits. */
typedef unsigned int half2_t;

__device__ __forceinline__ float toFloat(half_t x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

__device__ __forceinline__ half_t toHalf(float x) {
  half_t y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float2 toFloats(half2_t x) {
  return make_float2(toFloat((half_t)(x & 0xffffu)), toFloat((half_t)(x >> 16)));
}

__device__ __forceinline__ half2_t toHalves(float first, float second) {
  half2_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
  return y;
}

/** 16 bytes that are read once: they are not to displace anything. */
__device__ __forceinline__ uint4 streamed(const uint4 *from) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}

/** Eight float16 of 16 bytes, */
__device__ __forceinline__ void unpack(float *f, uint4 v) {
  const float2 a = toFloats(v.x), b = toFloats(v.y), c = toFloats(v.z), d = toFloats(v.w);
  f[0] = a.x; f[1] = a.y; f[2] = b.x; f[3] = b.y; f[4] = c.x; f[5] = c.y; f[6] = d.x; f[7] = d.y;
}

/** and back. */
__device__ __forceinline__ uint4 pack(const float *f) {
  return make_uint4(toHalves(f[0], f[1]), toHalves(f[2], f[3]), toHalves(f[4], f[5]), toHalves(f[6], f[7]));
}

/** Waits until the kernels before this one are done; those after it may begin, where they wait in turn. */
__device__ __forceinline__ void before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/** Sum over the lanes of a warp, for each of them. */
__device__ __forceinline__ float warpSum(float x) {
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
`;
