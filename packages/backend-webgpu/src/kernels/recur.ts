import { columnsOf, type DualShape, mixFunction } from './dual-linear-attention.js';
import { gatesOf, recordLayout, sharedOf } from './dual-record.js';
import { type Kernel, kernel, shortRow, upTo } from './kernel.js';

/** Lanes of a workgroup at most, and loads of a state that one has under way, all of them at once. */
const [most, together] = [300, 4];

/**
 * How a workgroup cuts a state [width, columns]: whole stretches of it, a round after the other, so that a lane's columns stay the
 * same.
 */
interface Cut {
  /** Numbers of a load. */
  readonly each: 1 | 4;
  /** Loads of a round, one a lane unless lanes are fewer, in turns. */
  readonly places: number;
  readonly size: number;
  readonly turns: number;
  /** Rows of the state in a round. */
  readonly rows: number;
  readonly rounds: number;
  /** Workgroups of a state. */
  readonly parts: number;
}

function cutOf({ form, width }: DualShape, threads: number): Cut {
  const columns = columnsOf(form);
  const fourths = columns % 4 === 0 ? 1 : columns % 2 === 0 ? 2 : 4; // fewest rows that are whole loads of four
  const each = width % fourths === 0 ? 4 : 1;
  const least = each === 4 ? fourths : 1;
  const fits = Math.floor(Math.min(threads, most) / ((least * columns) / each));
  const rows = least * divisor(width / least, fits);
  const rounds = divisor(width / rows, together);
  const places = (rows * columns) / each;
  const size = Math.min(places, threads);
  return { each, places, size, turns: Math.ceil(places / size), rows, rounds, parts: width / rows / rounds };
}

/** The greatest that is at most `limit`. */
function divisor(of: number, limit: number): number {
  for (let n = limit; n > 1; n--) if (of % n === 0) return n;
  return 1;
}

/** Workgroups of a state, each with some of its rows. */
export function recurParts(shape: DualShape, threads?: number): number {
  return cutOf(shape, threads ?? 256).parts;
}

/**
 * The states of short rows [slots, states, kvHeads, width, columns], token by token, recurParts workgroups a row and kv head:
 * S_i <- keep_i S_i + phi(k) [v, 1]^T, and sums [tokens, heads, recurParts, columns] = sum_i gamma_i phi(q)^T S_i over the rows of
 * each part. record [tokens, kvHeads, ...] as dual-arrive.ts leaves it. `replay`: from zero, without sums.
 */
export function recur(shape: DualShape, mixPerHead: boolean, replay: boolean, threads = 256): Kernel {
  const { form, width } = shape;
  const { states, kvHeads } = form;
  const cut = cutOf(shape, threads);
  const { each, places, size, turns, rows } = cut;
  const columns = columnsOf(form);
  const numbers = each === 4 ? 'vec4f' : 'f32';
  const shared = replay ? 0 : sharedOf(shape);
  const { length, exact } = recordLayout(shape, replay);
  const cells = cellsOf(shape, cut);
  const origin = `(row.x * ${states * kvHeads}u + group.y) * ${(width * columns) / each}u + group.z * ${cut.rounds * places}u`;
  return kernel({
    name: replay ? 'recur-replay' : 'recur',
    buffers: {
      record: ['f32', 'read'],
      ...(replay ? {} : { mix_logits: ['f32', 'read'] as const }),
      states: [numbers, 'write'],
      ...(replay ? {} : { sums: ['f32', 'write'] as const }),
    },
    module: `${replay ? '' : mixFunction(states, mixPerHead)}
var<workgroup> own: array<f32, ${exact}>;
${replay ? '' : `var<workgroup> partial: array<f32, ${places * each}>; // [rows, columns]`}`,
    size,
    main: `  let row = row_at(group.x);
  if (row.w > ${shortRow}u${replay ? '' : ' || row.w == 0u'}) { return; }
  let kv = group.y;
  let origin = ${origin};
${upTo(turns)
  .map((k) => placeOf(shape, cut, k))
  .join('\n')}
  // All loads at once, while the record is on its way.
${lines(cells, ({ name, at }) => `  var ${name} = ${replay ? `${numbers}()` : at};`)}
${replay ? '' : mixed(shape)}
  for (var t = 0u; t < row.w; t++) {
    let item = row.z + t;
    for (var e = lane; e < ${exact}u; e += ${size}u) { own[e] = record[(item * ${kvHeads}u + kv) * ${length}u + e]; }
    workgroupBarrier();
    let c = group.z * ${cut.rounds * rows}u;
${upTo(turns)
  .map((k) => update(shape, cut, replay, k))
  .join('\n')}
${upTo(shared)
  .map((h) => read(shape, cut, h))
  .join('\n')}
    workgroupBarrier();
  }
${upTo(turns)
  .map((k) => storeOf(cut, cells, k))
  .join('\n')}`,
  });
}

const lines = <T>(of: readonly T[], line: (each: T) => string): string => of.map(line).join('\n');

/** What a lane holds: state i, turn k, round u. */
interface Cell {
  readonly i: number;
  readonly k: number;
  readonly u: number;
  readonly name: string;
  readonly at: string;
}

function cellsOf({ form, width }: DualShape, { each, places, turns, rounds }: Cut): Cell[] {
  const state = (form.kvHeads * width * columnsOf(form)) / each;
  return upTo(turns).flatMap((k) =>
    upTo(rounds).flatMap((u) =>
      upTo(form.states).map((i) => {
        const at = `states[origin + ${i * state + u * places}u + min(place${k}, ${places - 1}u)]`;
        return { i, k, u, name: `s${i}_${k}_${u}`, at };
      }),
    ),
  );
}

/** The place of turn k, its columns, and its rows within a round: of four numbers, the first and the last. */
function placeOf({ form }: DualShape, { each, places, size }: Cut, k: number): string {
  const columns = columnsOf(form);
  const at = (e: number) => `(min(place${k}, ${places - 1}u) * ${each}u + ${e}u)`;
  return `  let place${k} = lane + ${k * size}u;
  let first${k} = ${at(0)} / ${columns}u;
  let last${k} = ${at(each - 1)} / ${columns}u;
${lines(upTo(each), (e) => `  let column${k}_${e} = ${at(e)} % ${columns}u;`)}
${each === 1 ? '' : `  let later${k} = vec4u(${upTo(4).map((e) => `${at(e)} / ${columns}u`)}) > vec4u(first${k});`}`;
}

/** gamma of the heads and states. */
function mixed(shape: DualShape): string {
  const { states } = shape.form;
  const shared = sharedOf(shape);
  return lines(upTo(shared * states), (n) => {
    return `  let mixed${n} = gamma(kv * ${shared}u + ${Math.floor(n / states)}u, ${n % states}u);`;
  });
}

const several = (each: 1 | 4, of: (e: number) => string): string =>
  each === 1 ? of(0) : `vec4f(${upTo(4).map(of).join(', ')})`;

/** WGSL of numbers of the record, one a row, from `first` on, for the rows of turn k and round u. */
function byRow({ each, rows }: Cut, first: number, k: number, u: number): string {
  const at = (row: string) => `own[${first + u * rows}u + c + ${row}${k}]`;
  return each === 1 ? at('first') : `select(vec4f(${at('first')}), vec4f(${at('last')}), later${k})`;
}

/** The states of turn k. */
function update(shape: DualShape, cut: Cut, replay: boolean, k: number): string {
  const { form } = shape;
  const { headDim, gate } = form;
  const layout = recordLayout(shape, replay);
  const value = (e: number) => {
    const column = `column${k}_${e}`;
    if (columnsOf(form) === headDim) return `own[${layout.value}u + ${column}]`;
    return `select(1.0, own[${layout.value}u + min(${column}, ${headDim - 1}u)], ${column} < ${headDim}u)`;
  };
  const keep = (i: number, u: number) =>
    gate === 'vector' ? byRow(cut, layout.keep + i * gatesOf(shape), k, u) : `own[${layout.keep + i}u]`;
  const cells = cellsOf(shape, cut).filter((cell) => cell.k === k);
  return `    let value${k} = ${several(cut.each, value)};
${lines(upTo(cut.rounds), (u) => `    let key${k}_${u} = ${byRow(cut, layout.key, k, u)} * value${k};`)}
${lines(cells, ({ name, i, u }) => `    ${name} = ${keep(i, u)} * ${name} + key${k}_${u};`)}`;
}

/** The sums of query head h: of a lane, then of all that have a column. */
function read(shape: DualShape, cut: Cut, h: number): string {
  const { heads, form, width } = shape;
  const { each, places, size, turns, rows, rounds, parts } = cut;
  const columns = columnsOf(form);
  const first = recordLayout(shape, false).queries + h * width;
  const weighted = (k: number, u: number) =>
    upTo(form.states)
      .map((i) => `mixed${h * form.states + i} * s${i}_${k}_${u}`)
      .join(' + ');
  const sum = (k: number) => {
    const terms = upTo(rounds).map((u) => `${byRow(cut, first, k, u)} * (${weighted(k, u)})`);
    const put = (e: number, value: string) => `        partial[place${k} * ${each}u + ${e}u] = ${value};`;
    return `      if (place${k} < ${places}u) {
        let sum = ${terms.join('\n          + ')};
${each === 1 ? put(0, 'sum') : lines(upTo(4), (e) => put(e, `sum[${e}]`))}
      }`;
  };
  return `    {
${lines(upTo(turns), sum)}
      workgroupBarrier();
      for (var column = lane; column < ${columns}u; column += ${size}u) {
        var sum = 0.0;
        for (var r = 0u; r < ${rows}u; r++) { sum += partial[r * ${columns}u + column]; }
        let head = item * ${heads}u + kv * ${sharedOf(shape)}u + ${h}u;
        sums[(head * ${parts}u + group.z) * ${columns}u + column] = sum;
      }
      workgroupBarrier();
    }`;
}

function storeOf({ places, size, turns }: Cut, cells: readonly Cell[], k: number): string {
  const stores = lines(
    cells.filter((cell) => cell.k === k),
    ({ name, at }) => `  ${at} = ${name};`,
  );
  return turns * size === places ? stores : `  if (place${k} < ${places}u) {\n${stores}\n  }`;
}
