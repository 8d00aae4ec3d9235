import type { Shape } from './elementwise.js';
import { type Domain, type Element, itemAt, items, type Kernel, kernel } from './kernel.js';

/** What the shape of the kernel follows from: `items` at a time, `outputs` a subgroup, `lanes` of a subgroup. */
export interface VectorShape {
  readonly items: number;
  readonly outputs: number;
  readonly lanes: number;
}

export const vectorSize = 128;

/** Outputs of one workgroup. */
export function vectorOutputs({ lanes, outputs }: VectorShape): number {
  return (vectorSize / lanes) * outputs;
}

/** Features that one load takes: 16 bytes. The width of x must be a multiple of it. */
export const loadWidth: Readonly<Record<Element, number>> = { f32: 4, f16: 8 };

/**
 * y = x W^T + b for a few items: W is read once for all of them, 16 bytes a lane, a subgroup an output row or two. x and W have
 * one type; sums in float32.
 */
export function linearVector(domain: Domain, y: Shape, x: Shape, shape: VectorShape, bias: boolean): Kernel {
  const { items: count, outputs, lanes } = shape;
  const half = x.type === 'f16';
  const loads = x.width / loadWidth[x.type];
  const rows = [...Array(outputs).keys()];
  const batch = [...Array(count).keys()];
  const type = half ? 'vec4u' : 'vec4f';
  const product = half ? 'dot8' : 'dot';
  const each = (line: (b: number, r: number) => string) => batch.flatMap((b) => rows.map((r) => line(b, r))).join('\n');
  return kernel({
    name: `linear-vector-${count}`,
    buffers: {
      x: [type, 'read'],
      w: [type, 'read'],
      ...(bias ? { bias: ['f32', 'read'] as const } : {}),
      y: [y.type, 'write'],
    },
    module: half
      ? `fn dot8(a: vec4u, b: vec4u) -> f32 {
  return dot(unpack2x16float(a.x), unpack2x16float(b.x)) + dot(unpack2x16float(a.y), unpack2x16float(b.y))
    + dot(unpack2x16float(a.z), unpack2x16float(b.z)) + dot(unpack2x16float(a.w), unpack2x16float(b.w));
}`
      : '',
    size: vectorSize,
    subgroups: true,
    main: `  let first = (group.x * ${vectorSize / lanes}u + lane / ${lanes}u) * ${outputs}u;
${rows.map((r) => `  let w${r} = min(first + ${r}u, ${y.width - 1}u) * ${loads}u;`).join('\n')}
  let last = ${items[domain]} - 1u;
${batch.map((b) => `  let i${b} = ${itemAt[domain]}(min(group.y * ${count}u + ${b}u, last)).x;`).join('\n')}
${each((b, r) => `  var s${b}_${r} = 0.0;`)}
  for (var k = sub_lane; k < ${loads}u; k += ${lanes}u) {
${rows.map((r) => `    let a${r} = w[w${r} + k];`).join('\n')}
${batch
  .map(
    (b) => `    let x${b} = x[i${b} * ${loads}u + k];
${rows.map((r) => `    s${b}_${r} += ${product}(x${b}, a${r});`).join('\n')}`,
  )
  .join('\n')}
  }
${each((b, r) => `  s${b}_${r} = subgroupAdd(s${b}_${r});`)}
  if (sub_lane != 0u) { return; }
${each(
  (b, r) => `  if (group.y * ${count}u + ${b}u <= last && first + ${r}u < ${y.width}u) {
    y[i${b} * ${y.width}u + first + ${r}u] = ${y.type}(s${b}_${r}${bias ? ` + bias[first + ${r}u]` : ''});
  }`,
)}`,
  });
}
