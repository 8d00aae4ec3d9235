import type { DualShape } from './dual-linear-attention.js';
import { readingOf, recordLayout, team } from './dual-record.js';
import { upTo } from './kernel.js';

// phi of a vector by a whole workgroup: a team of lanes has a row of the map, whose loads are on their way before the vector is
// there.

/** Rows of the map that a lane takes part in, one a turn, and loads of a row. */
function turnsOf(
  shape: DualShape,
  size: number,
): { readonly turns: readonly number[]; readonly loads: readonly number[] } {
  return {
    turns: upTo(Math.ceil(((shape.width / 2) * team) / size)),
    loads: upTo(Math.ceil(readingOf(shape).words / team)),
  };
}

/** WGSL of the workgroup memory of featuresOf. */
export function featureMemory({ width }: DualShape): string {
  const half = width / 2;
  return `var<workgroup> mapped: array<f32, ${half}>;
var<workgroup> shares: array<f32, ${half * team}>;`;
}

/** WGSL that loads a lane's part of the map of a head. */
export function mapLoads(shape: DualShape, size: number, of: 'key' | 'query', head: string): string {
  const { words } = readingOf(shape);
  const { turns, loads } = turnsOf(shape, size);
  const half = shape.width / 2;
  return turns
    .flatMap((k) => {
      const row = `((${head}) * ${half}u + min((lane + ${k * size}u) / ${team}u, ${half - 1}u)) * ${words}u`;
      return loads.map(
        (j) => `  let ${of}${k}_${j} = map_${of}[${row} + min(lane % ${team}u + ${j * team}u, ${words - 1}u)];`,
      );
    })
    .join('\n');
}

/** WGSL of phi of the vector of that number to the record, with what mapLoads has loaded. */
export function featuresOf(shape: DualShape, size: number, of: 'key' | 'query', vector: string): string {
  const half = shape.width / 2;
  const { words, numbersOf, product } = readingOf(shape);
  const { turns, loads } = turnsOf(shape, size);
  const layout = recordLayout(shape, of === 'key');
  const to = of === 'key' ? `out + ${layout.key}u` : `out + ${layout.queries}u + h * ${shape.width}u`;
  const term = (k: number, j: number) => {
    const one = product(
      numbersOf(`${of}${k}_${j}`),
      `vectors[(${vector}) * ${words}u + min(member + ${j * team}u, ${words - 1}u)]`,
    );
    return (j + 1) * team <= words ? one : `select(0.0, ${one}, member + ${j * team}u < ${words}u)`;
  };
  const share = (k: number) => {
    const put = `shares[lane + ${k * size}u] = ${loads.map((j) => term(k, j)).join('\n        + ')};`;
    return (k + 1) * size <= half * team
      ? `      ${put}`
      : `      if (lane + ${k * size}u < ${half * team}u) {\n  ${put}\n      }`;
  };
  const sum = upTo(team).map((m) => `shares[f * ${team}u + ${m}u]`);
  const value = (sign: string) => `exp(${sign}mapped[f] - bound)`;
  const put = (sign: string) => (of === 'key' ? `select(0.0, ${value(sign)}, valid)` : value(sign));
  return `    {
      let member = lane % ${team}u;
${turns.map(share).join('\n')}
      workgroupBarrier();
      for (var f = lane; f < ${half}u; f += ${size}u) { mapped[f] = ${sum.join(' + ')}; }
      workgroupBarrier();
      if (lane < ${half}u) {
        var bound = 0.0;
        for (var f = 0u; f < ${half}u; f++) { bound = max(bound, abs(mapped[f])); }
        for (var f = lane; f < ${half}u; f += ${size}u) {
          record[${to} + f] = ${put('')};
          record[${to} + ${half}u + f] = ${put('-')};
        }
      }
    }`;
}
