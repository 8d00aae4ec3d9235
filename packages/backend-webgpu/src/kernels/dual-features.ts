import type { DualShape } from './dual-linear-attention.js';
import { readingOf, recordLayout, sharedOf, team } from './dual-record.js';
import { upTo } from './matrices.js';

/** WGSL of the workgroup memory of featuresOf. */
export function featureMemory({ width }: DualShape): string {
  return `var<workgroup> mapped: array<f32, ${width / 2}>;\nvar<workgroup> shares: array<f32, ${(width / 2) * team}>;`;
}

/** WGSL of phi of the vector of that number to the record: a team of lanes a row of the map, then every lane finds the bound. */
export function featuresOf(shape: DualShape, size: number, of: 'key' | 'query', vector: string): string {
  const { width } = shape;
  const half = width / 2;
  const { words, product } = readingOf(shape);
  const layout = recordLayout(shape, of === 'key');
  const shared = sharedOf(shape);
  const [head, to] =
    of === 'key' ? ['kv', `out + ${layout.key}u`] : [`kv * ${shared}u + h`, `out + ${layout.queries}u + h * ${width}u`];
  const sum = upTo(team)
    .map((m) => `shares[f * ${team}u + ${m}u]`)
    .join(' + ');
  const value = (sign: string) => `exp(${sign}mapped[f] - bound)`;
  const put = (sign: string) => (of === 'key' ? `select(0.0, ${value(sign)}, valid)` : value(sign));
  return `    {
      for (var e = lane; e < ${half * team}u; e += ${size}u) {
        let weight = ((${head}) * ${half}u + e / ${team}u) * ${words}u;
        var sum = 0.0;
        for (var j = e % ${team}u; j < ${words}u; j += ${team}u) {
          sum += ${product(`map_${of}[weight + j]`, `vectors[(${vector}) * ${words}u + j]`)};
        }
        shares[e] = sum;
      }
      workgroupBarrier();
      for (var f = lane; f < ${half}u; f += ${size}u) { mapped[f] = ${sum}; }
      workgroupBarrier();
      var bound = 0.0;
      for (var f = 0u; f < ${half}u; f++) { bound = max(bound, abs(mapped[f])); }
      for (var f = lane; f < ${half}u; f += ${size}u) {
        record[${to} + f] = ${put('')};
        record[${to} + ${half}u + f] = ${put('-')};
      }
    }`;
}
