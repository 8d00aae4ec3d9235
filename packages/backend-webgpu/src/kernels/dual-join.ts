import { columnsOf, type DualShape } from './dual-linear-attention.js';
import { recordLayout, sharedOf } from './dual-record.js';
import { float, type Kernel, kernel, reductions, shortRow } from './kernel.js';

const size = 64;

interface Joined {
  readonly scale: number;
  readonly outputNorm?: { readonly eps: number } | undefined;
}

/**
 * y [tokens, heads*headDim] of short rows, one workgroup a token and head: sums [tokens, heads, parts, columns] of all parts times
 * scale, or divided by the normaliser, joined with the exact part in the record where there is one; then the output norm.
 */
export function dualJoin(shape: DualShape, parts: number, { scale, outputNorm }: Joined): Kernel {
  const { heads, form, type } = shape;
  const { kvHeads, headDim, normaliser, exact } = form;
  const columns = columnsOf(form);
  const layout = recordLayout(shape, false);
  const [value, divisor] = exact
    ? ['record[own + c] + share * all_of(first, c)', `record[own + ${headDim}u] + share * all_of(first, ${headDim}u)`]
    : ['all_of(first, c)', `all_of(first, ${headDim}u)`];
  const result = `(${value}) * factor`;
  return kernel({
    name: 'dual-join',
    buffers: {
      sums: ['f32', 'read'],
      ...(exact ? ({ record: ['f32', 'read'], log_weight: ['f32', 'read'] } as const) : {}),
      ...(outputNorm ? { norm: ['f32', 'read'] as const } : {}),
      y: [type, 'write'],
    },
    module: `${outputNorm ? reductions(size) : ''}
fn all_of(first: u32, column: u32) -> f32 {
  var sum = 0.0;
  for (var p = 0u; p < ${parts}u; p++) { sum += sums[first + p * ${columns}u + column]; }
  return sum;
}`,
    size,
    main: `  let token = token_at(group.x);
  if (row_at(token.y).w > ${shortRow}u) { return; }
  let head = group.y;
  let item = token.x * ${heads}u + head;
  let first = item * ${parts * columns}u;
${
  exact
    ? `  let share = exp(log_weight[head]);
  let own = (token.x * ${kvHeads}u + head / ${sharedOf(shape)}u) * ${layout.length}u + ${layout.exact}u + head % ${sharedOf(shape)}u * ${headDim + 1}u;`
    : ''
}
  let factor = ${normaliser ? `1.0 / (${divisor})` : float(scale)};
${
  outputNorm
    ? `  var squares = 0.0;
  for (var c = lane; c < ${headDim}u; c += ${size}u) { let x = ${result}; squares += x * x; }
  let rms = inverseSqrt(sum_all(squares, lane) / ${float(headDim)} + ${float(outputNorm.eps)});
`
    : ''
}  for (var c = lane; c < ${headDim}u; c += ${size}u) {
    y[item * ${headDim}u + c] = ${type}(${result}${outputNorm ? ' * rms * norm[c]' : ''});
  }`,
  });
}
