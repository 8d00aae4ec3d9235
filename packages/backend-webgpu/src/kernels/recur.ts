import { columnsOf, type DualShape, gateColumns, mixFunction } from './dual-linear-attention.js';
import { type Kernel, type KernelParts, kernel, shortRow } from './kernel.js';

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
  const { form, width } = shape;
  const { states, kvHeads, headDim } = form;
  const columns = columnsOf(form);
  const { across, parts } = cutOf(shape);
  const shared = sharedOf(shape);
  const size = across * parts;
  return kernel({
    name: replay ? 'recur-replay' : 'recur',
    buffers: buffersOf(shape, replay),
    module: `${replay ? '' : mixFunction(states, mixPerHead)}
var<workgroup> keys: array<f32, ${width}>;
var<workgroup> keeps: array<f32, ${states * gatesOf(shape)}>;
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
    ? `  if (inside) {\n${walk(
        shape,
        lines(cellsOf(shape), (each) => `        ${each.at} = 0.0;`),
      )}\n  }`
    : mixed(shape)
}
  for (var t = 0u; t < row.w; t++) {
    let item = row.z + t;
${stage(shape, size, replay)}
    workgroupBarrier();
    var value = 1.0;
    if (column < ${headDim}u) { value = f32(v[(item * ${kvHeads}u + kv) * ${headDim}u + column]); }
${replay ? '' : `    var sum = array<f32, ${shared}>();`}
    if (inside) {
${walk(shape, `${update(shape)}\n${replay ? '' : read(shape)}`)}
    }
${replay ? '' : gather(shape)}${parts === 1 || replay ? '\n    workgroupBarrier();' : ''}
  }`,
  });
}

function buffersOf({ type }: DualShape, replay: boolean): KernelParts['buffers'] {
  return {
    ...(replay ? {} : { phi_q: [type, 'read'] as const }),
    phi_k: [type, 'read'],
    v: [type, 'read'],
    decay: ['f32', 'read'],
    ...(replay ? {} : { mix_logits: ['f32', 'read'] as const }),
    states: ['f32', 'write'],
    ...(replay ? {} : { sums: ['f32', 'write'] as const }),
  };
}

const range = (count: number): number[] => Array.from({ length: count }, (_, n) => n);
const lines = <T>(of: readonly T[], line: (each: T) => string): string => of.map(line).join('\n');
/** Query heads of a kv head. */
const sharedOf = ({ heads, form }: DualShape): number => heads / form.kvHeads;
/** Gates of a state and head. */
const gatesOf = ({ form }: DualShape): number => (form.gate === 'vector' ? form.headDim : 1);

/** What a lane holds at a time: state i, the u-th channel of a group. */
interface Cell {
  readonly u: number;
  readonly name: string;
  readonly at: string;
  readonly keep: string;
}

function cellsOf(shape: DualShape): Cell[] {
  const { states, kvHeads, gate } = shape.form;
  const columns = columnsOf(shape.form);
  const { group } = cutOf(shape);
  return range(states).flatMap((i) =>
    range(group).map((u) => ({
      u,
      name: `s${i}_${u}`,
      at: `states[base + ${i * kvHeads * shape.width * columns + u * columns}u]`,
      keep: `keeps[${i * gatesOf(shape)}u${gate === 'vector' ? ` + c + ${u}u` : ''}]`,
    })),
  );
}

/** `body` for every group of a part's channels, the first of which is c. */
function walk(shape: DualShape, body: string): string {
  const { parts, group } = cutOf(shape);
  const channels = shape.width / parts;
  return `      for (var c = part * ${channels}u; c < (part + 1u) * ${channels}u; c += ${group}u) {
        let base = origin + c * ${columnsOf(shape.form)}u;
${body}
      }`;
}

/** gamma of the heads and states. */
function mixed(shape: DualShape): string {
  const { states } = shape.form;
  const shared = sharedOf(shape);
  const one = (n: number) => `  mixed[${n}] = gamma(kv * ${shared}u + ${Math.floor(n / states)}u, ${n % states}u);`;
  return `  var mixed: array<f32, ${shared * states}>;\n${lines(range(shared * states), one)}`;
}

/** phi of key and queries and the decays of a token to workgroup memory. */
function stage(shape: DualShape, size: number, replay: boolean): string {
  const { heads, form, width } = shape;
  const { states, kvHeads } = form;
  const shared = sharedOf(shape);
  const gates = gatesOf(shape);
  const query = (h: number) =>
    `      queries[${h * width}u + c] = f32(phi_q[(item * ${heads}u + kv * ${shared}u + ${h}u) * ${width}u + c]);`;
  return `    for (var c = lane; c < ${width}u; c += ${size}u) {
      keys[c] = f32(phi_k[(item * ${kvHeads}u + kv) * ${width}u + c]);
${replay ? '' : lines(range(shared), query)}
    }
    for (var g = lane; g < ${states * gates}u; g += ${size}u) {
      keeps[g] = exp(decay[item * ${gateColumns(form)}u + (g / ${gates}u * ${kvHeads}u + kv) * ${gates}u + g % ${gates}u]);
    }`;
}

/** All loads before the first store, which the compiler could not move them over. */
function update(shape: DualShape): string {
  const cells = cellsOf(shape);
  return `${lines(cells, ({ name, at }) => `        var ${name} = ${at};`)}
${lines(cells, ({ name, keep, u }) => `        ${name} = ${keep} * ${name} + keys[c + ${u}u] * value;`)}
${lines(cells, ({ name, at }) => `        ${at} = ${name};`)}`;
}

function read(shape: DualShape): string {
  const { states } = shape.form;
  const weighted = (h: number, u: number) =>
    range(states)
      .map((i) => `mixed[${h * states + i}] * s${i}_${u}`)
      .join(' + ');
  const head = (h: number) =>
    lines(
      range(cutOf(shape).group),
      (u) => `        sum[${h}] += queries[${h * shape.width}u + c + ${u}u] * (${weighted(h, u)});`,
    );
  return lines(range(sharedOf(shape)), head);
}

/** The sums of all parts, from the lanes of the first. */
function gather(shape: DualShape): string {
  const { across, parts } = cutOf(shape);
  const shared = sharedOf(shape);
  const out = (h: number) =>
    `sums[(item * ${shape.heads}u + kv * ${shared}u + ${h}u) * ${columnsOf(shape.form)}u + column]`;
  const all = range(parts)
    .map((p) => `partial[${p * across}u + lane]`)
    .join(' + ');
  return lines(range(shared), (h) =>
    parts === 1
      ? `    if (inside) { ${out(h)} = sum[${h}]; }`
      : `    partial[lane] = sum[${h}];
    workgroupBarrier();
    if (inside && part == 0u) { ${out(h)} = ${all}; }
    workgroupBarrier();`,
  );
}
