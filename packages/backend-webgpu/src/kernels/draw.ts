import { type Kernel, kernel, reductions } from './kernel.js';

const size = 256;
/** Probabilities are counted in units of 2^-30, so that sums do not depend on an order. */
const unit = 2 ** 30;

/**
 * ids [rows]: a token a row from logits [rows, vocabulary]. draws [rows] of (temperature, k, p, uniform): temperature 0 takes
 * the first of the largest logits; else softmax(logits / temperature), the k most likely tokens, of these the most likely ones
 * that reach p together (both with those equal to the last), and the first token, by id, at which the sum of what is left
 * exceeds `uniform`; -1 where a logit is not a number. The k-th largest and the last of p are found by their bits, eight at a time. One workgroup a row.
 */
export function drawTokens(vocabulary: number): Kernel {
  const share = Math.ceil(vocabulary / size);
  return kernel({
    name: 'draw-tokens',
    buffers: { logits: ['f32', 'read'], draws: ['vec4f', 'read'], ids: ['i32', 'write'] },
    module: `${reductions(size)}
var<workgroup> bins: array<atomic<u32>, 256>;
var<workgroup> found: array<u32, 2>; // threshold so far, what is still wanted
var<workgroup> sums: array<u32, ${size}>;
var<workgroup> chosen: atomic<u32>;
var<workgroup> broken: atomic<u32>;
// Greater numbers have greater keys.
fn key(x: f32) -> u32 {
  let bits = bitcast<u32>(x);
  return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}
// Largest key t of which all keys >= t weigh at least \`wanted\`; of the keys >= least.
fn threshold(row: u32, lane: u32, wanted: u32, least: u32, draw: vec4f, top: f32, total: f32) -> u32 {
  if (lane == 0u) {
    found[0] = 0u;
    found[1] = wanted;
  }
  for (var shift = 24i; shift >= 0i; shift -= 8i) {
    atomicStore(&bins[lane], 0u);
    workgroupBarrier();
    let prefix = found[0];
    for (var i = lane; i < ${vocabulary}u; i += ${size}u) {
      let x = logits[row + i];
      let k = key(x);
      let same = shift == 24i || (k ^ prefix) >> (u32(shift + 8i) & 31u) == 0u;
      if (same && k >= least) { atomicAdd(&bins[(k >> u32(shift)) & 255u], select(mass(x, draw, top, total), 1u, total == 0.0)); }
    }
    workgroupBarrier();
    if (lane == 0u) {
      var bin = 255u;
      var above = 0u;
      loop {
        let here = atomicLoad(&bins[bin]);
        if (above + here >= found[1] || bin == 0u) { break; }
        above += here;
        bin -= 1u;
      }
      found[0] = prefix | (bin << u32(shift));
      found[1] -= above;
    }
    workgroupBarrier();
  }
  return workgroupUniformLoad(&found[0]);
}
fn mass(x: f32, draw: vec4f, top: f32, total: f32) -> u32 {
  return u32(${unit}.0 * exp((x - top) / draw.x) / total);
}`,
    size,
    main: `  let row = group.x * ${vocabulary}u;
  let draw = draws[group.x];
  var own = -3e38;
  if (lane == 0u) { atomicStore(&broken, 0u); }
  workgroupBarrier();
  for (var i = lane; i < ${vocabulary}u; i += ${size}u) {
    let x = logits[row + i];
    own = max(own, x);
    if ((bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u) { atomicStore(&broken, 1u); } // not a number
  }
  let top = max_all(own, lane);
  if (lane == 0u) { atomicStore(&chosen, ${vocabulary}u); }
  workgroupBarrier();
  if (draw.x == 0.0) {
    for (var i = lane; i < ${vocabulary}u; i += ${size}u) {
      if (logits[row + i] == top) { atomicMin(&chosen, i); }
    }
  } else {
    var least = 0u;
    if (draw.y < ${vocabulary}.0) { least = threshold(row, lane, u32(draw.y), 0u, draw, top, 0.0); }
    var weight = 0.0;
    for (var i = lane; i < ${vocabulary}u; i += ${size}u) {
      let x = logits[row + i];
      weight += select(0.0, exp((x - top) / draw.x), key(x) >= least);
    }
    let total = sum_all(weight, lane);
    if (draw.z < 1.0) { least = max(least, threshold(row, lane, u32(draw.z * ${unit}.0), least, draw, top, total)); }
    // A stretch of tokens a thread, so that sums run by id.
    var sum = 0u;
    for (var i = lane * ${share}u; i < min((lane + 1u) * ${share}u, ${vocabulary}u); i++) {
      let x = logits[row + i];
      sum += select(0u, mass(x, draw, top, total), key(x) >= least);
    }
    sums[lane] = sum;
    workgroupBarrier();
    if (lane == 0u) {
      var before = 0u;
      for (var n = 0u; n < ${size}u; n++) {
        let here = sums[n];
        sums[n] = before;
        before += here;
      }
      found[0] = min(u32(draw.w * f32(before)), before - 1u);
    }
    workgroupBarrier();
    let wanted = found[0];
    var before = sums[lane];
    if (wanted >= before && wanted - before < sum) {
      for (var i = lane * ${share}u; i < min((lane + 1u) * ${share}u, ${vocabulary}u); i++) {
        let x = logits[row + i];
        let here = select(0u, mass(x, draw, top, total), key(x) >= least);
        if (wanted - before < here) {
          atomicStore(&chosen, i);
          break;
        }
        before += here;
      }
    }
  }
  workgroupBarrier();
  if (lane == 0u) { ids[group.x] = select(i32(min(atomicLoad(&chosen), ${vocabulary - 1}u)), -1, atomicLoad(&broken) == 1u); }`,
  });
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
