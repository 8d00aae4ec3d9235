import { columnsOf, type DualShape, gateColumns, mixFunction } from './dual-linear-attention.js';
import { type Kernel, kernel, shortRow } from './kernel.js';

const most = 256; // lanes of a workgroup
const ahead = 32; // numbers of the state that a lane loads before it stores any

/** How a workgroup cuts a state: all columns side by side, so that it writes whole stretches of memory, and channels in parts. */
function cutOf({ form, width }: DualShape): {
  readonly across: number;
  readonly parts: number;
  readonly group: number;
} {
  const across = Math.min(32 * Math.ceil(columnsOf(form) / 32), most);
  const parts = divisor(width, Math.floor(most / across));
  return { across, parts, group: divisor(width / parts, Math.max(Math.floor(ahead / form.states), 1)) };
}

/** The greatest that is at most `limit`. */
function divisor(of: number, limit: number): number {
  for (let n = limit; n > 1; n--) if (of % n === 0) return n;
  return 1;
}

/** Workgroups for a row and kv head. */
export function recurBlocks(shape: DualShape): number {
  return Math.ceil(columnsOf(shape.form) / cutOf(shape).across);
}

/**
 * Token by token, one workgroup a row and kv head, a lane a column of the state [slots, states, kvHeads, width, columns]:
 * S_i <- exp(a_i) S_i + phi(k) [v, 1]^T; sums [tokens, heads, columns] = sum_i gamma_i phi(q)^T S_i. The definition, and the
 * kernel of decoding. `replay` starts from zero and reads nothing: a fold. Rows of more than a few tokens are left to
 * dual-chunks.ts.
 */
export function recur(shape: DualShape, mixPerHead: boolean, replay: boolean): Kernel {
  const { heads, form, width, type } = shape;
  const { states, kvHeads, headDim, gate } = form;
  const columns = columnsOf(form);
  const shared = replay ? 0 : heads / kvHeads;
  const { across, parts, group } = cutOf(shape);
  const size = across * parts;
  const gates = gate === 'vector' ? headDim : 1;
  const range = (count: number) => Array.from({ length: count }, (_, n) => n);
  const cells = range(states).flatMap((i) => range(group).map((u) => ({ i, u, name: `s${i}_${u}` })));
  const cell = ({ i, u }: { i: number; u: number }) => `states[base + ${i * kvHeads * width * columns + u * columns}u]`;
  const keep = ({ i, u }: { i: number; u: number }) => `keeps[${i * gates}u${gate === 'vector' ? ` + c + ${u}u` : ''}]`;
  const eachGroup = (
    body: string,
  ) => `      for (var c = part * ${width / parts}u; c < (part + 1u) * ${width / parts}u; c += ${group}u) {
        let base = origin + c * ${columns}u;
${body}
      }`;
  const read = range(shared)
    .map((h) => {
      const weighted = (u: number) => range(states).map((i) => `mixed[${h * states + i}] * s${i}_${u}`);
      return range(group)
        .map((u) => `        sum[${h}] += queries[${h * width}u + c + ${u}u] * (${weighted(u).join(' + ')});`)
        .join('\n');
    })
    .join('\n');
  const out = (h: number) => `sums[(item * ${heads}u + kv * ${shared}u + ${h}u) * ${columns}u + column]`;
  const gather = range(shared)
    .map((h) =>
      parts === 1
        ? `    if (inside) { ${out(h)} = sum[${h}]; }`
        : `    partial[lane] = sum[${h}];
    workgroupBarrier();
    if (inside && part == 0u) { ${out(h)} = ${range(parts)
      .map((p) => `partial[${p * across}u + lane]`)
      .join(' + ')}; }
    workgroupBarrier();`,
    )
    .join('\n');
  return kernel({
    name: replay ? 'recur-replay' : 'recur',
    buffers: {
      ...(replay ? {} : { phi_q: [type, 'read'] as const }),
      phi_k: [type, 'read'],
      v: [type, 'read'],
      decay: ['f32', 'read'],
      ...(replay ? {} : { mix_logits: ['f32', 'read'] as const }),
      states: ['f32', 'write'],
      ...(replay ? {} : { sums: ['f32', 'write'] as const }),
    },
    module: `${replay ? '' : mixFunction(states, mixPerHead)}
var<workgroup> keys: array<f32, ${width}>;
var<workgroup> keeps: array<f32, ${states * gates}>;
${replay ? '' : `var<workgroup> queries: array<f32, ${shared * width}>;`}
${!replay && parts > 1 ? `var<workgroup> partial: array<f32, ${size}>;` : ''}`,
    size,
    main: `  let row = row_at(group.x);
  if (row.w > ${shortRow}u${replay ? '' : ' || row.w == 0u'}) { return; }
  let kv = group.y;
  let column = group.z * ${across}u + lane % ${across}u;
  let part = lane / ${across}u;
  let inside = column < ${columns}u;
  let origin = (row.x * ${states * kvHeads}u + kv) * ${width * columns}u + column;
${
  replay
    ? `  if (inside) {
${eachGroup(cells.map((each) => `        ${cell(each)} = 0.0;`).join('\n'))}
  }`
    : `  var mixed: array<f32, ${shared * states}>;
${range(shared * states)
  .map((n) => `  mixed[${n}] = gamma(kv * ${shared}u + ${Math.floor(n / states)}u, ${n % states}u);`)
  .join('\n')}`
}
  for (var t = 0u; t < row.w; t++) {
    let item = row.z + t;
    for (var c = lane; c < ${width}u; c += ${size}u) {
      keys[c] = f32(phi_k[(item * ${kvHeads}u + kv) * ${width}u + c]);
${range(shared)
  .map(
    (h) =>
      `      queries[${h * width}u + c] = f32(phi_q[(item * ${heads}u + kv * ${shared}u + ${h}u) * ${width}u + c]);`,
  )
  .join('\n')}
    }
    for (var g = lane; g < ${states * gates}u; g += ${size}u) {
      keeps[g] = exp(decay[item * ${gateColumns(form)}u + (g / ${gates}u * ${kvHeads}u + kv) * ${gates}u + g % ${gates}u]);
    }
    workgroupBarrier();
    var value = 1.0;
    if (column < ${headDim}u) { value = f32(v[(item * ${kvHeads}u + kv) * ${headDim}u + column]); }
${replay ? '' : `    var sum = array<f32, ${shared}>();`}
    if (inside) {
${eachGroup(`${cells.map((each) => `        var ${each.name} = ${cell(each)};`).join('\n')}
${cells.map((each) => `        ${each.name} = ${keep(each)} * ${each.name} + keys[c + ${each.u}u] * value;`).join('\n')}
${cells.map((each) => `        ${cell(each)} = ${each.name};`).join('\n')}
${read}`)}
    }
${gather}${parts === 1 || replay ? '\n    workgroupBarrier();' : ''}
  }`,
  });
}
