import type { Shape } from './elementwise.js';
import { type Element, type Kernel, kernel, reductions, upTo } from './kernel.js';

/** Probabilities are counted in units of 2^-30, so that sums do not depend on an order. */
const unit = 2 ** 30;
/** Logits that a thread has on their way. */
const loadsAtOnce = 8;

/** Threads of a workgroup that draws, where a workgroup has at most `most` of them. */
export function drawSize(most: number): number {
  return 2 ** Math.floor(Math.log2(Math.min(most, 1024)));
}

/**
 * ids [rows]: a token a row from logits [rows, vocabulary]. draws [rows] of (temperature, k, p, uniform): temperature 0 takes
 * the first of the largest logits; else softmax(logits / temperature), the k most likely tokens, of these the most likely ones
 * that reach p together (both with those equal to the last), and the first token, by id, at which the sum of what is left
 * exceeds `uniform`; -1 where a logit is not a number. The k-th largest and the last of p are found by their bits, eight at a
 * time. One workgroup a row, of `size` threads: a power of two, 256 or more.
 */
export function drawTokens({ width: vocabulary, type }: Shape, size: number): Kernel {
  return kernel({
    name: 'draw-tokens',
    // Halves by words of two, which every device can read.
    buffers: { logits: [type === 'f16' ? 'u32' : 'f32', 'read'], draws: ['vec4f', 'read'], ids: ['i32', 'write'] },
    module: moduleOf(vocabulary, type, size),
    size,
    main: `  let row = group.x * ${vocabulary}u;
  let draw = draws[group.x];
  if (lane == 0u) {
    atomicStore(&chosen, ${vocabulary}u);
    atomicStore(&broken, 0u);
  }
  workgroupBarrier();
${firstLargest(vocabulary, size)}
  let top = max_all(own, lane);
  if (draw.x == 0.0) {
    if (own == top) { atomicMin(&chosen, first); }
  } else {
${sample(vocabulary, size)}
  }
  workgroupBarrier();
  if (lane == 0u) { ids[group.x] = select(i32(min(atomicLoad(&chosen), ${vocabulary - 1}u)), -1, atomicLoad(&broken) == 1u); }`,
  });
}

/** WGSL of the memory and of what `sample` looks thresholds up by. */
function moduleOf(vocabulary: number, type: Element, size: number): string {
  return `${reductions(size)}
var<workgroup> bins: array<atomic<u32>, 256>;
var<workgroup> sums: array<u32, ${size}>;
var<workgroup> found: array<u32, 2>; // threshold so far, what is still wanted
var<workgroup> chosen: atomic<u32>;
var<workgroup> broken: atomic<u32>;
fn logit(i: u32) -> f32 { return ${type === 'f16' ? 'unpack2x16float(logits[i / 2u])[i % 2u]' : 'logits[i]'}; }
// Greater numbers have greater keys.
fn key(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}
// The sum of the values of a thread and those before it.
fn scan(value: u32, lane: u32) -> u32 {
  workgroupBarrier();
  sums[lane] = value;
  workgroupBarrier();
  for (var step = 1u; step < ${size}u; step <<= 1u) {
    let before = select(0u, sums[max(lane, step) - step], lane >= step);
    workgroupBarrier();
    sums[lane] += before;
    workgroupBarrier();
  }
  return sums[lane];
}
// Largest key t of which all keys >= t weigh at least \`wanted\`; of the keys >= least.
fn threshold(row: u32, lane: u32, wanted: u32, least: u32, draw: vec4f, top: f32, total: f32) -> u32 {
  if (lane == 0u) {
    found[0] = 0u;
    found[1] = wanted;
  }
  for (var shift = 24i; shift >= 0i; shift -= 8i) {
    if (lane < 256u) { atomicStore(&bins[lane], 0u); }
    workgroupBarrier();
    let prefix = found[0];
    let left = found[1];
    for (var i = lane; i < ${vocabulary}u; i += ${size}u) {
      let x = logit(row + i);
      let k = key(x);
      let same = shift == 24i || (k ^ prefix) >> (u32(shift + 8i) & 31u) == 0u;
      if (same && k >= least) { atomicAdd(&bins[(k >> u32(shift)) & 255u], select(mass(x, draw, top, total), 1u, total == 0.0)); }
    }
    workgroupBarrier();
    // Greatest keys first.
    let bin = 255u - min(lane, 255u);
    let here = select(0u, atomicLoad(&bins[bin]), lane < 256u);
    let sum = scan(here, lane);
    if (lane < 256u && sum - here < left && (sum >= left || bin == 0u)) {
      found[0] = prefix | (bin << u32(shift));
      found[1] = left - (sum - here);
    }
    workgroupBarrier();
  }
  return workgroupUniformLoad(&found[0]);
}
fn mass(x: f32, draw: vec4f, top: f32, total: f32) -> u32 {
  return u32(${unit}.0 * exp((x - top) / draw.x) / total);
}`;
}

/** WGSL of a thread's largest logit and the first token that has it; also whether one is not a number. */
function firstLargest(vocabulary: number, size: number): string {
  return `  // A thread's first largest; beyond the end the last logit comes again.
  var own = -3e38;
  var first = ${vocabulary}u;
  for (var at = lane; at < ${vocabulary}u; at += ${loadsAtOnce * size}u) {
${upTo(loadsAtOnce)
  .map((n) => `    let i${n} = min(at + ${n * size}u, ${vocabulary - 1}u);\n    let x${n} = logit(row + i${n});`)
  .join('\n')}
${upTo(loadsAtOnce)
  .map((n) => `    if (x${n} > own) { own = x${n}; first = i${n}; }`)
  .join('\n')}
    let wrong = ${upTo(loadsAtOnce)
      .map((n) => `(bitcast<u32>(x${n}) & 0x7fffffffu) > 0x7f800000u`) // not a number
      .join(' || ')};
    if (wrong) { atomicStore(&broken, 1u); }
  }`;
}

/** WGSL that chooses a token of those that temperature, k and p leave. */
function sample(vocabulary: number, size: number): string {
  const share = Math.ceil(vocabulary / size);
  const stretch = `var i = lane * ${share}u; i < min((lane + 1u) * ${share}u, ${vocabulary}u); i++`;
  return `    var least = 0u;
    if (draw.y < ${vocabulary}.0) { least = threshold(row, lane, u32(draw.y), 0u, draw, top, 0.0); }
    var weight = 0.0;
    for (var i = lane; i < ${vocabulary}u; i += ${size}u) {
      let x = logit(row + i);
      weight += select(0.0, exp((x - top) / draw.x), key(x) >= least);
    }
    let total = sum_all(weight, lane);
    if (draw.z < 1.0) { least = max(least, threshold(row, lane, max(u32(draw.z * ${unit}.0), 1u), least, draw, top, total)); }
    // A stretch of tokens a thread, so that sums run by id.
    var sum = 0u;
    for (${stretch}) {
      let x = logit(row + i);
      sum += select(0u, mass(x, draw, top, total), key(x) >= least);
    }
    var before = scan(sum, lane) - sum;
    let all = sums[${size - 1}u];
    let wanted = min(u32(draw.w * f32(all)), all - 1u);
    if (wanted >= before && wanted - before < sum) {
      for (${stretch}) {
        let x = logit(row + i);
        let here = select(0u, mass(x, draw, top, total), key(x) >= least);
        if (wanted - before < here) {
          atomicStore(&chosen, i);
          break;
        }
        before += here;
      }
    }`;
}

/** Token ids on the device into what a step's kernels read (see kernel.ts): out is the buffer of a view. */
export function takeTokens(): Kernel {
  return kernel({
    name: 'take-tokens',
    buffers: { ids: ['i32', 'read'], out: ['u32', 'write'] },
    size: 64,
    main: `  for (var t = group.x * 64u + lane; t < out[1]; t += groups.x * 64u) {
    let at = 4u * (out[5] + t);
    out[at + 3u] = u32(ids[out[at]]);
  }`,
  });
}
