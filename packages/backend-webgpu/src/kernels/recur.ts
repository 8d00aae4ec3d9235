import { columnsOf, type DualShape, mixFunction } from './dual-linear-attention.js';
import { gatesOf, recordLayout, sharedOf } from './dual-record.js';
import { float, type Kernel, kernel, shortRow } from './kernel.js';
import { upTo } from './matrices.js';

/** Loads of a state that a lane has under way: those of so many rounds, of all states. */
const roundsAtOnce = 4;

/** How a workgroup goes through a state [width, columns]: whole stretches of it a round, so that a lane's columns stay the same. */
interface Cut {
  /** Numbers of a load. */
  readonly each: 1 | 4;
  /** Loads of a round, one a lane unless lanes are fewer. */
  readonly places: number;
  /** Rows of the state in a round. */
  readonly rows: number;
  /** Rounds whose loads are under way at once. */
  readonly together: number;
  readonly size: number;
  /** Places of a lane. */
  readonly turns: number;
}

function cutOf({ form, width }: DualShape, threads: number): Cut {
  const columns = columnsOf(form);
  const fourths = columns % 4 === 0 ? 1 : columns % 2 === 0 ? 2 : 4; // fewest rows that are whole loads of four
  const each = width % fourths === 0 ? 4 : 1;
  const least = each === 4 ? fourths : 1;
  const most = Math.max(Math.floor(Math.min(threads, 512 + columns) / ((least * columns) / each)), 1);
  const rows = least * divisor(width / least, most);
  const places = (rows * columns) / each;
  const size = Math.min(places, threads);
  return { each, places, rows, together: divisor(width / rows, roundsAtOnce), size, turns: Math.ceil(places / size) };
}

/** The greatest that is at most `limit`. */
function divisor(of: number, limit: number): number {
  for (let n = limit; n > 1; n--) if (of % n === 0) return n;
  return 1;
}

export interface Reads {
  readonly mixPerHead: boolean;
  readonly scale: number;
  readonly outputNorm?: { readonly eps: number } | undefined;
}

/**
 * The states of short rows [slots, states, kvHeads, width, columns], token by token, one workgroup a row and kv head:
 * S_i <- keep_i S_i + phi(k) [v, 1]^T and, with `reads`, the result y [tokens, heads*headDim] of sum_i gamma_i phi(q)^T S_i,
 * joined with the exact part where there is one. record [tokens, kvHeads, ...] as dual-arrive.ts leaves it. Without `reads` it is a
 * replay, from zero.
 */
export function recur(shape: DualShape, reads: Reads | undefined, threads = 256): Kernel {
  const { form, width, type } = shape;
  const { states, kvHeads, headDim } = form;
  const cut = cutOf(shape, threads);
  const { each, places, rows, size, turns } = cut;
  const columns = columnsOf(form);
  const numbers = each === 4 ? 'vec4f' : 'f32';
  const shared = reads ? sharedOf(shape) : 0;
  const { length } = recordLayout(shape, !reads);
  return kernel({
    name: reads ? 'recur' : 'recur-replay',
    buffers: {
      record: ['f32', 'read'],
      ...(reads ? { mix_logits: ['f32', 'read'] as const } : {}),
      ...(reads && form.exact ? { log_weight: ['f32', 'read'] as const } : {}),
      ...(reads?.outputNorm ? { norm: ['f32', 'read'] as const } : {}),
      states: [numbers, 'write'],
      ...(reads ? { y: [type, 'write'] as const } : {}),
    },
    module: `${reads ? mixFunction(states, reads.mixPerHead) : ''}
var<workgroup> own: array<f32, ${length}>;
${
  reads
    ? `var<workgroup> partial: array<f32, ${places * each}>; // [rows, columns]
fn all_of(column: u32) -> f32 {
  var sum = 0.0;
  for (var r = 0u; r < ${rows}u; r++) { sum += partial[r * ${columns}u + column]; }
  return sum;
}`
    : ''
}
${reads?.outputNorm ? `var<workgroup> results: array<f32, ${headDim}>;` : ''}`,
    size,
    main: `  let row = row_at(group.x);
  if (row.w > ${shortRow}u${reads ? ' || row.w == 0u' : ''}) { return; }
  let kv = group.y;
  let origin = (row.x * ${states * kvHeads}u + kv) * ${(width * columns) / each}u;
${reads ? mixed(shape) : clear(shape, cut)}
  for (var t = 0u; t < row.w; t++) {
    let item = row.z + t;
    for (var e = lane; e < ${length}u; e += ${size}u) { own[e] = record[(item * ${kvHeads}u + kv) * ${length}u + e]; }
    workgroupBarrier();
${lines(upTo(turns * shared), (n) => `    var sum${Math.floor(n / shared)}_${n % shared} = ${numbers}();`)}
${lines(upTo(turns), (k) => {
  const body = through(shape, cut, reads, k);
  const place = `      let place = lane + ${k * size}u;`;
  return turns === 1
    ? `    {\n${place}\n${body}\n    }`
    : `    if (lane + ${k * size}u < ${places}u) {\n${place}\n${body}\n    }`;
})}
${upTo(shared)
  .map((h) => finish(shape, cut, reads!, h))
  .join('\n')}
    workgroupBarrier();
  }`,
  });
}

const lines = <T>(of: readonly T[], line: (each: T) => string): string => of.map(line).join('\n');

/** gamma of the heads and states. */
function mixed(shape: DualShape): string {
  const { states } = shape.form;
  const shared = sharedOf(shape);
  return lines(upTo(shared * states), (n) => {
    return `  let mixed${n} = gamma(kv * ${shared}u + ${Math.floor(n / states)}u, ${n % states}u);`;
  });
}

function clear({ form, width }: DualShape, { each, size }: Cut): string {
  const cells = (width * columnsOf(form)) / each;
  return `  for (var e = lane; e < ${cells}u; e += ${size}u) {
${lines(upTo(form.states), (i) => `    states[origin + ${i * form.kvHeads * cells}u + e] = ${each === 4 ? 'vec4f' : 'f32'}();`)}
  }
  storageBarrier();`;
}

/** All rounds of the k-th place of a lane. Loads come before the first store, which the compiler could not move them over. */
function through(shape: DualShape, { each, places, rows, together }: Cut, reads: Reads | undefined, k: number): string {
  const { form, width } = shape;
  const { states, kvHeads, headDim, gate } = form;
  const columns = columnsOf(form);
  const layout = recordLayout(shape, !reads);
  const several = (of: (e: number) => string) => (each === 1 ? of(0) : `vec4f(${upTo(4).map(of).join(', ')})`);
  const cells = upTo(together).flatMap((u) =>
    upTo(states).map((i) => {
      const first = (i * kvHeads * width * columns) / each + u * places;
      return { u, i, name: `s${i}_${u}`, at: `states[origin + ${first}u + c / ${rows}u * ${places}u + place]` };
    }),
  );
  const of = (from: number, u: number) => several((e) => `own[${from + u * rows}u + c + row${e}]`);
  const keep = (i: number, u: number) =>
    gate === 'vector' ? of(layout.keep + i * gatesOf(shape), u) : `own[${layout.keep + i}u]`;
  const read = (h: number, u: number) => {
    const sum = upTo(states).map((i) => `mixed${h * states + i} * s${i}_${u}`);
    return `        sum${k}_${h} += ${of(layout.queries + h * width, u)} * (${sum.join(' + ')});`;
  };
  const value = (e: number) =>
    columns > headDim
      ? `select(1.0, own[${layout.value}u + min(column${e}, ${headDim - 1}u)], column${e} < ${headDim}u)`
      : `own[${layout.value}u + column${e}]`;
  return `${lines(upTo(each), (e) => `      let row${e} = (place * ${each}u + ${e}u) / ${columns}u;\n      let column${e} = (place * ${each}u + ${e}u) % ${columns}u;`)}
      let value = ${several(value)};
      for (var c = 0u; c < ${width}u; c += ${rows * together}u) {
${lines(cells, ({ name, at }) => `        var ${name} = ${at};`)}
${lines(upTo(together), (u) => `        let key${u} = ${of(layout.key, u)} * value;`)}
${lines(cells, ({ name, i, u }) => `        ${name} = ${keep(i, u)} * ${name} + key${u};`)}
${lines(cells, ({ name, at }) => `        ${at} = ${name};`)}
${reads ? lines(upTo(sharedOf(shape)), (h) => lines(upTo(together), (u) => read(h, u))) : ''}
      }`;
}

/** The result of query head h from the sums of all places. */
function finish(shape: DualShape, { each, places, turns, size }: Cut, reads: Reads, h: number): string {
  const { heads, form, type } = shape;
  const { headDim, normaliser, exact } = form;
  const hand = (k: number) => {
    const put = (e: number, value: string) => `      partial[(lane + ${k * size}u) * ${each}u + ${e}u] = ${value};`;
    const puts = each === 1 ? put(0, `sum${k}_${h}`) : lines(upTo(4), (e) => put(e, `sum${k}_${h}[${e}]`));
    return `    if (lane + ${k * size}u < ${places}u) {\n${puts}\n    }`;
  };
  const first = recordLayout(shape, false).exact + h * (headDim + 1);
  const [share, divisor] = exact
    ? [`own[${first}u + c] + share * sum`, `(own[${first + headDim}u] + share * all_of(${headDim}u))`]
    : ['sum', `all_of(${headDim}u)`];
  const value = normaliser ? `(${share}) / divisor` : `sum * ${float(reads.scale)}`;
  const to = `y[(item * ${heads}u + kv * ${sharedOf(shape)}u + ${h}u) * ${headDim}u + c]`;
  const norm = reads.outputNorm
    ? `    workgroupBarrier();
    var squares = 0.0;
    for (var c = 0u; c < ${headDim}u; c++) { squares += results[c] * results[c]; }
    let rms = inverseSqrt(squares / ${float(headDim)} + ${float(reads.outputNorm.eps)});
    for (var c = lane; c < ${headDim}u; c += ${size}u) { ${to} = ${type}(results[c] * rms * norm[c]); }
`
    : '';
  return `    {
${lines(upTo(turns), hand)}
    workgroupBarrier();
${exact ? `    let share = exp(log_weight[kv * ${sharedOf(shape)}u + ${h}u]);` : ''}
${normaliser ? `    let divisor = ${divisor};` : ''}
    for (var c = lane; c < ${headDim}u; c += ${size}u) {
      let sum = all_of(c);
      ${reads.outputNorm ? `results[c] = ${value};` : `${to} = ${type}(${value});`}
    }
${norm}    workgroupBarrier();
    }`;
}
