import type { Shape } from './elementwise.js';
import { type Domain, float, itemAt, type Kernel, kernel, reductions } from './kernel.js';

const normSize = 256;

interface NormOptions {
  /** x = a + b is normed, and written to `sum` first. */
  readonly added?: { readonly b: Shape; readonly sum: Shape };
  /** Writes what this leaves of every result: the norm itself, rounded. Read, since drivers take f32(f16(x)) for x. */
  readonly rest?: Shape;
}

/** y = w * x / sqrt(mean(x^2) + eps), one workgroup an item. */
export function rmsNorm(domain: Domain, y: Shape, x: Shape, eps: number, { added, rest }: NormOptions = {}): Kernel {
  const { width } = x;
  // Loads come before the stores, so that all are in flight at once; the last may reach past the end.
  const parts = [...Array(Math.ceil(width / normSize)).keys()];
  const each = (body: (n: number) => string) =>
    parts
      .map((n) =>
        (n + 1) * normSize <= width ? `  ${body(n)}` : `  if (i + ${n * normSize}u < ${width}u) { ${body(n)} }`,
      )
      .join('\n');
  const at = (name: string, n: number) => `${name}[base + i + ${n * normSize}u]`;
  const value = (n: number) => `f32(${at('x', n)})${added ? ` + f32(${at('b', n)})` : ''}`;
  // What was written is what is normed: the same rounding as two separate kernels.
  const rounded = (n: number) => (added?.sum.type === 'f16' ? `f32(f16(${value(n)}))` : value(n));
  return kernel({
    name: `${added ? 'add-' : ''}rms-norm${rest ? '-rest' : ''}`,
    buffers: {
      x: [x.type, 'read'],
      ...(added ? { b: [added.b.type, 'read'] as const } : {}),
      w: ['f32', 'read'],
      ...(rest ? { rounded: [rest.type, 'read'] as const } : {}),
      ...(added ? { sum: [added.sum.type, 'write'] as const } : {}),
      y: [y.type, 'write'],
    },
    module: reductions(normSize),
    size: normSize,
    main: `  let base = ${itemAt[domain]}(group.x).x * ${width}u;
  let i = lane;
${parts.map((n) => `  var v${n} = 0.0;`).join('\n')}
${each((n) => `v${n} = ${rounded(n)};`)}
${added ? each((n) => `${at('sum', n)} = ${added.sum.type}(v${n});`) : ''}
  let squares = ${parts.map((n) => `v${n} * v${n}`).join(' + ')};
  let scale = inverseSqrt(sum_all(squares, lane) / ${float(width)} + ${float(eps)});
${each((n) => {
  const less = rest ? ` - f32(${at('rounded', n)})` : '';
  return `${at('y', n)} = ${y.type}(w[i + ${n * normSize}u] * v${n} * scale${less});`;
})}`,
  });
}
