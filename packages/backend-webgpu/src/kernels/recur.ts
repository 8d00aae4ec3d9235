import { columnsOf, type DualShape, mixFunction } from './dual-linear-attention.js';
import { gatesOf, recordLayout, sharedOf } from './dual-record.js';
import { type Kernel, kernel, shortRow } from './kernel.js';
import { upTo } from './matrices.js';

/** Lanes of a workgroup at most, rounds that are loaded at once, and parts of a state where rows are few. */
const [most, together, split] = [300, 2, 4];
/** States that keep a GPU at work whole. */
const enough = 256;

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
  const parts = divisor(width / rows / rounds, split);
  return { each, places, size, turns: Math.ceil(places / size), rows, rounds, parts };
}

/** The greatest that is at most `limit`. */
function divisor(of: number, limit: number): number {
  for (let n = limit; n > 1; n--) if (of % n === 0) return n;
  return 1;
}

/** Parts of a state at most, each some of its rows and a workgroup's; so many where rows are few. */
export function recurParts(shape: DualShape, threads?: number): number {
  return cutOf(shape, threads ?? 256).parts;
}

/** Parts for so many rows; in WGSL for those of the view. */
export function partsFor({ form }: DualShape, parts: number, rows: number): number {
  return rows * form.kvHeads >= enough ? 1 : parts;
}
export function partsOfView({ form }: DualShape, parts: number): string {
  return `select(${parts}u, 1u, batch[0].x * ${form.kvHeads}u >= ${enough}u)`;
}

/**
 * The states of short rows [slots, states, kvHeads, width, columns], token by token, [rows, kvHeads, partsFor] workgroups:
 * S_i <- keep_i S_i + phi(k) [v, 1]^T, and sums [tokens, heads, recurParts, columns] = sum_i gamma_i phi(q)^T S_i over the rows of
 * each part. record [tokens, kvHeads, ...] as dual-arrive.ts leaves it. `replay`: from zero, without sums. What comes next is
 * loaded before the states are stored, which the compiler could not move loads over.
 */
export function recur(shape: DualShape, mixPerHead: boolean, replay: boolean, threads = 256): Kernel {
  const { form, width } = shape;
  const { states, kvHeads } = form;
  const cut = cutOf(shape, threads);
  const { each, places, size, turns, rows, rounds } = cut;
  const columns = columnsOf(form);
  const numbers = each === 4 ? 'vec4f' : 'f32';
  const shared = replay ? 0 : sharedOf(shape);
  const { length, exact } = recordLayout(shape, replay);
  const cells = cellsOf(shape, cut);
  const step = rows * rounds;
  const load = (c: string) => lines(cells, ({ name, at }) => `    next_${name} = ${at(c)};`);
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
${replay ? '' : `var<workgroup> partial: array<${numbers}, ${places}>; // [rows, columns]`}`,
    size,
    main: `  let row = row_at(group.x);
  if (row.w > ${shortRow}u${replay ? '' : ' || row.w == 0u'}) { return; }
  let kv = group.y;
  let origin = (row.x * ${states * kvHeads}u + kv) * ${(width * columns) / each}u;
  let begin = group.z * (${width}u / groups.z);
  let end = begin + ${width}u / groups.z;
${lines(upTo(turns), (k) => placeOf(shape, cut, k))}
${lines(cells, ({ name }) => `  var next_${name} = ${numbers}();`)}
${replay ? clear(cut, cells) : mixed(shape)}
  for (var t = 0u; t < row.w; t++) {
    let item = row.z + t;
${load('begin')}
    for (var e = lane; e < ${exact}u; e += ${size}u) { own[e] = record[(item * ${kvHeads}u + kv) * ${length}u + e]; }
    workgroupBarrier();
${lines(upTo(turns), (k) => entering(shape, cut, replay, k))}
${lines(upTo(turns * shared), (n) => `    var sum${n % turns}_${Math.floor(n / turns)} = ${numbers}();`)}
    for (var c = begin; c < end; c += ${step}u) {
${lines(cells, ({ name }) => `    var ${name} = next_${name};`)}
${load(`min(c + ${step}u, end - ${step}u)`)}
${lines(upTo(turns), (k) => update(shape, cut, replay, k))}
${lines(upTo(turns), (k) => storeOf(cut, cells, k))}
    }
${lines(upTo(shared), (h) => read(shape, cut, h))}
    workgroupBarrier();
  }`,
  });
}

const lines = <T>(of: readonly T[], line: (each: T) => string): string => of.map(line).join('\n');

/** What a lane holds: state i, turn k, round u. */
interface Cell {
  readonly i: number;
  readonly k: number;
  readonly u: number;
  readonly name: string;
  /** WGSL of where it lies, in the rounds from row c on. */
  readonly at: (c: string) => string;
}

function cellsOf({ form, width }: DualShape, { each, places, turns, rows, rounds }: Cut): Cell[] {
  const state = (form.kvHeads * width * columnsOf(form)) / each;
  return upTo(turns).flatMap((k) =>
    upTo(rounds).flatMap((u) =>
      upTo(form.states).map((i) => {
        const first = i * state + u * places;
        const at = (c: string) =>
          `states[origin + ${first}u + (${c}) / ${rows}u * ${places}u + min(place${k}, ${places - 1}u)]`;
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

/** Zeros, also where a row has no tokens. */
function clear({ each, rows, rounds, places, turns, size }: Cut, cells: readonly Cell[]): string {
  const zeros = upTo(turns).map((k) => {
    const stores = lines(
      cells.filter((cell) => cell.k === k),
      ({ at }) => `    ${at('c')} = ${each === 4 ? 'vec4f' : 'f32'}();`,
    );
    return turns * size === places ? stores : `    if (place${k} < ${places}u) {\n${stores}\n    }`;
  });
  return `  for (var c = begin; c < end; c += ${rows * rounds}u) {\n${zeros.join('\n')}\n  }`;
}

/** gamma of the heads and states. */
function mixed(shape: DualShape): string {
  const { states } = shape.form;
  const shared = sharedOf(shape);
  return lines(upTo(shared * states), (n) => {
    return `  let mixed${n} = gamma(kv * ${shared}u + ${Math.floor(n / states)}u, ${n % states}u);`;
  });
}

/** WGSL of numbers of the record, one a row, from `first` on, for the rows of turn k and round u. */
function byRow({ each, rows }: Cut, first: number, k: number, u: number): string {
  const at = (row: string) => `own[${first + u * rows}u + c + ${row}${k}]`;
  return each === 1 ? at('first') : `select(vec4f(${at('first')}), vec4f(${at('last')}), later${k})`;
}

/** The value that enters, in the columns of turn k. */
function entering(shape: DualShape, { each }: Cut, replay: boolean, k: number): string {
  const { headDim } = shape.form;
  const { value } = recordLayout(shape, replay);
  const one = (e: number) => {
    const column = `column${k}_${e}`;
    if (columnsOf(shape.form) === headDim) return `own[${value}u + ${column}]`;
    return `select(1.0, own[${value}u + min(${column}, ${headDim - 1}u)], ${column} < ${headDim}u)`;
  };
  return `    let value${k} = ${each === 1 ? one(0) : `vec4f(${upTo(4).map(one).join(', ')})`};`;
}

/** The states of turn k, and what the queries read of them. */
function update(shape: DualShape, cut: Cut, replay: boolean, k: number): string {
  const { form, width } = shape;
  const layout = recordLayout(shape, replay);
  const keep = (i: number, u: number) =>
    form.gate === 'vector' ? byRow(cut, layout.keep + i * gatesOf(shape), k, u) : `own[${layout.keep + i}u]`;
  const cells = cellsOf(shape, cut).filter((cell) => cell.k === k);
  const weighted = (h: number, u: number) =>
    upTo(form.states)
      .map((i) => `mixed${h * form.states + i} * s${i}_${k}_${u}`)
      .join(' + ');
  const reads = upTo(replay ? 0 : sharedOf(shape)).flatMap((h) =>
    upTo(cut.rounds).map((u) => {
      return `      sum${k}_${h} += ${byRow(cut, layout.queries + h * width, k, u)} * (${weighted(h, u)});`;
    }),
  );
  return `${lines(upTo(cut.rounds), (u) => `      let key${k}_${u} = ${byRow(cut, layout.key, k, u)} * value${k};`)}
${lines(cells, ({ name, i, u }) => `      ${name} = ${keep(i, u)} * ${name} + key${k}_${u};`)}
${reads.join('\n')}`;
}

function storeOf({ places, size, turns }: Cut, cells: readonly Cell[], k: number): string {
  const stores = lines(
    cells.filter((cell) => cell.k === k),
    ({ name, at }) => `      ${at('c')} = ${name};`,
  );
  return turns * size === places ? stores : `      if (place${k} < ${places}u) {\n${stores}\n      }`;
}

/** The sums of query head h over all lanes that have a column. */
function read({ heads, form }: DualShape, { each, places, size, turns, rows, parts }: Cut, h: number): string {
  const columns = columnsOf(form);
  const shared = heads / form.kvHeads;
  const at = `r * ${columns}u + column`;
  return `    {
${lines(upTo(turns), (k) => `      if (place${k} < ${places}u) { partial[place${k}] = sum${k}_${h}; }`)}
      workgroupBarrier();
      for (var column = lane; column < ${columns}u; column += ${size}u) {
        var sum = 0.0;
        for (var r = 0u; r < ${rows}u; r++) { sum += ${each === 1 ? `partial[${at}]` : `partial[(${at}) / 4u][(${at}) % 4u]`}; }
        let head = item * ${heads}u + kv * ${shared}u + ${h}u;
        sums[(head * ${parts}u + group.z) * ${columns}u + column] = sum;
      }
      workgroupBarrier();
    }`;
}
