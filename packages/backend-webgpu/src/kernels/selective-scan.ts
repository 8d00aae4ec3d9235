import { type Element, float, type Kernel, kernel } from './kernel.js';
import { upTo } from './matrices.js';
import { activated, loadType, numbersOf, readers, readFunctions, type ScanShape } from './scan-operands.js';

// S <- exp(dt A) S + dt B x, y = C.S + D x (Gu and Dao 2023, arXiv 2312.00752, equation 2), A = -exp(log_a). One kernel goes
// through all tokens of a row, whatever their number: the entries of a channel's state are shared out among lanes, which is
// enough of them to fill a GPU (section 3.3.2 there has a scan over all tokens instead).

/** Tokens that are staged at once, lanes of a workgroup, tokens between two looks at whether there are more. */
const [staged, lanes, unrolled] = [16, 128, 4];
/** Channels of a workgroup at most: workgroup memory is small. */
const most = 32;
/** Numbers between the sums of the lanes of a channel beyond those of all channels: so they lie in different banks. */
const pad = 8;

/** How a workgroup is cut: channels of one head, each with a team of lanes that hold four entries of its state, or one. */
interface Cut {
  readonly entries: 1 | 4;
  readonly team: number;
  /** Channels of a workgroup, lanes of it, and workgroups of a head. */
  readonly across: number;
  readonly size: number;
  readonly blocks: number;
  /** WGSL type of the entries of a lane. */
  readonly several: 'vec4f' | 'f32';
  /** Features of a load of an operand, four where all are aligned, and the WGSL type of its numbers. */
  readonly each: 1 | 4;
  readonly numbers: 'vec4f' | 'f32';
}

function cutOf(shape: ScanShape): Cut {
  const { heads, channels, n, dt, b, c } = shape;
  const entries = n % 4 === 0 ? 4 : 1;
  const team = n / entries;
  const across = Math.min(Math.max(Math.floor(lanes / team), 1), most);
  const parts = [dt, b, c].flatMap((operand) => operand.parts);
  const places = parts.flatMap(({ width, stride = width, from = 0 }) => [width, stride, from]);
  const aligned = [...places, channels / heads, across, entries].every((number) => number % 4 === 0);
  const blocks = Math.ceil(channels / heads / across);
  const [several, numbers] = [entries === 4 ? 'vec4f' : 'f32', aligned ? 'vec4f' : 'f32'] as const;
  return { entries, team, across, size: across * team, blocks, several, each: aligned ? 4 : 1, numbers };
}

/** Workgroups of a row. */
export function scanGroups(shape: ScanShape): number {
  return shape.heads * cutOf(shape).blocks;
}

/**
 * x and y [tokens, channels], state [slots, channels, n]; workgroups [scanGroups, rows]. Operands of the next tokens are loaded
 * while the lanes go through the ones before.
 */
export function selectiveScan(shape: ScanShape): Kernel {
  const { heads, channels, type, sources, gate } = shape;
  const cut = cutOf(shape);
  const { team, across, size, blocks, several, each, numbers } = cut;
  const width = channels / heads;
  const spot = (of: string) => `(${of}) % ${each}u * ${across / each}u + (${of}) / ${each}u`;
  const next = loadedOf(shape, cut).map(([name, of]) => `  var next_${name} = ${of}();`);
  return kernel({
    name: 'selective-scan',
    buffers: {
      x: [loadType(type, each), 'read'],
      ...Object.fromEntries(sources.map((of, index) => [`source${index}`, [loadType(of, each), 'read'] as const])),
      log_a: [several, 'read'],
      d: ['f32', 'read'],
      ...(gate ? { z: [loadType(gate.type, each), 'read'] as const } : {}),
      y: [type, 'write'],
      state: [several, 'write'],
    },
    module: `${readFunctions(shape, each, numbers)}
var<workgroup> steps: array<f32, ${staged * across}>; // every fourth channel, then those after them
var<workgroup> values: array<f32, ${staged * across}>; // x
${gate ? `var<workgroup> gates: array<f32, ${staged * across}>;` : ''}
var<workgroup> inputs: array<${several}, ${staged * team}>;
var<workgroup> outputs: array<${several}, ${staged * team}>;
var<workgroup> sums: array<f32, ${staged * team * (across + pad)}>;`,
    size,
    main: `  let row = row_at(group.y);
  if (row.w == 0u) { return; }
  let head = group.x / ${blocks}u;
  let first = head * ${width}u + group.x % ${blocks}u * ${across}u;
  let last = head * ${width}u + ${width - 1}u;
  let member = lane % ${team}u;
  let local = lane / ${team}u;
  let channel = min(first + local, last);
  let cell = (row.x * ${channels}u + channel) * ${team}u + member;
  var s = state[cell];
  let a = -exp(log_a[channel * ${team}u + member]) * ${float(Math.LOG2E)};
  let written = first + lane % ${across}u;
  let skip = d[min(written, last)];
  let spot = ${spot('local')};
  let written_spot = ${spot(`lane % ${across}u`)};
${next.join('\n')}
${load(shape, cut, '0u')}
  for (var start = 0u; start < row.w; start += ${staged}u) {
    let count = min(${staged}u, row.w - start);
${stage(shape, cut)}
${load(shape, cut, `start + ${staged}u`)}
    workgroupBarrier();
    for (var t = 0u; t < count; t += ${unrolled}u) {
${upTo(unrolled)
  .map((u) => move(cut, `t + ${u}u`))
  .join('\n')}
    }
    workgroupBarrier();
${write(shape, cut)}
    workgroupBarrier();
  }
  if (first + local <= last) { state[cell] = s; }`,
  });
}

/** Turns in which the lanes load, stage or write so many. */
const turnsOf = (count: number, { size }: Cut): number[] => upTo(Math.ceil(count / size));
/** Loads of channels, and of entries, of the tokens that are staged. */
const channelLoads = ({ across, each }: Cut): number => (staged * across) / each;
const entryLoads = ({ team }: Cut): number => staged * team;

/** What a lane has under way, by name and WGSL type. */
function loadedOf({ gate }: ScanShape, cut: Cut): [name: string, type: string][] {
  const own = ['x', 'dt', ...(gate ? ['z'] : [])];
  return [
    ...turnsOf(channelLoads(cut), cut).flatMap((k) =>
      own.map((name): [string, string] => [`${name}${k}`, cut.numbers]),
    ),
    ...turnsOf(entryLoads(cut), cut).flatMap((k) =>
      ['b', 'c'].map((name): [string, string] => [`${name}${k}`, cut.several]),
    ),
  ];
}

/**
 * Loads of the tokens from `start` on. Heads whose operands lie elsewhere have a branch of their own: one that each load has would
 * make it wait.
 */
function load(shape: ScanShape, cut: Cut, start: string): string {
  const bodies = upTo(shape.heads).map((head) => loads(shape, cut, start, readers(shape, cut.each, head)));
  const last = bodies.length - 1;
  const ends = bodies.flatMap((body, head) => (head === last || body !== bodies[head + 1] ? [{ body, head }] : []));
  if (ends.length === 1) return bodies[0]!;
  const branches = ends.map(({ body, head }) =>
    head === last ? `{\n${body}\n  }` : `if (head <= ${head}u) {\n${body}\n  }`,
  );
  return `  ${branches.join(' else ')}`;
}

/** As load, of one head; beyond the last token it is loaded again. */
function loads(shape: ScanShape, cut: Cut, start: string, at: ReturnType<typeof readers>): string {
  const { channels, n, gate, type } = shape;
  const { entries, team, across, size, several, each } = cut;
  const token = (width: number) => `row.z + min(${start} + e / ${width}u, row.w - 1u)`;
  const value = (name: 'x' | 'z', of: Element) =>
    numbersOf(of, each, `${name}[(token * ${channels}u + at) / ${each}u]`);
  const entriesOf = (name: 'b' | 'c') => {
    const one = (i: number) => at[name](`head * ${n}u + e % ${team}u * ${entries}u + ${i}u`);
    const loaded = each === 4 || entries === 1 ? one(0) : `${several}(${upTo(entries).map(one).join(', ')})`;
    const { fn } = shape[name];
    if (!fn || entries === 1) return activated(fn, loaded);
    return `${several}(${upTo(entries)
      .map((i) => activated(fn, `(${loaded})[${i}]`))
      .join(', ')})`;
  };
  const own = turnsOf(channelLoads(cut), cut).map(
    (k) => `    {
      let e = lane + ${k * size}u;
      let token = ${token(across / each)};
      let at = min(first + e % ${across / each}u * ${each}u, last - ${each - 1}u);
      next_x${k} = ${value('x', type)};
      next_dt${k} = ${at.dt('at')};
${gate ? `      next_z${k} = ${value('z', gate.type)};\n` : ''}    }`,
  );
  const shared = turnsOf(entryLoads(cut), cut).map(
    (k) => `    {
      let e = lane + ${k * size}u;
      let token = ${token(team)};
      next_b${k} = ${entriesOf('b')};
      next_c${k} = ${entriesOf('c')};
    }`,
  );
  return [...own, ...shared].join('\n');
}

/** What has been loaded to workgroup memory. Tokens beyond the last change nothing. */
function stage({ dt, gate }: ScanShape, cut: Cut): string {
  const { team, across, size, each } = cut;
  const quads = across / each;
  const puts = (name: string, value: (i: number) => string) =>
    upTo(each)
      .map((i) => `      ${name}[at + ${i * quads}u] = ${value(i)};`)
      .join('\n');
  const of = (name: string, i: number) => (each === 1 ? `next_${name}` : `next_${name}[${i}]`);
  const own = turnsOf(channelLoads(cut), cut).map(
    (k) => `    if (lane + ${k * size}u < ${staged * quads}u) {
      let t = (lane + ${k * size}u) / ${quads}u;
      let at = t * ${across}u + (lane + ${k * size}u) % ${quads}u;
${puts('steps', (i) => `select(0.0, ${activated(dt.fn, of(`dt${k}`, i))}, t < count)`)}
${puts('values', (i) => of(`x${k}`, i))}
${gate ? puts('gates', (i) => activated(gate.fn, of(`z${k}`, i))) : ''}
    }`,
  );
  const shared = turnsOf(entryLoads(cut), cut).map(
    (k) => `    if (lane + ${k * size}u < ${staged * team}u) {
      inputs[lane + ${k * size}u] = next_b${k};
      outputs[lane + ${k * size}u] = next_c${k};
    }`,
  );
  return [...own, ...shared].join('\n');
}

/** A token through the entries of a lane. */
function move(cut: Cut, t: string): string {
  const { entries, team, across } = cut;
  return `      {
        let own = (${t}) * ${across}u + spot;
        let step = steps[own];
        let at = (${t}) * ${team}u + member;
        s = exp2(step * a) * s + step * values[own] * inputs[at];
        sums[at * ${across + pad}u + local] = ${entries === 4 ? 'dot(outputs[at], s)' : 'outputs[at] * s'};
      }`;
}

/** y of the tokens that have been gone through, from the sums of all lanes of a channel. */
function write({ channels, type, gate }: ScanShape, cut: Cut): string {
  const { team, across } = cut;
  const sum = upTo(team).map((m) => `sums[(t * ${team}u + ${m}u) * ${across + pad}u + lane % ${across}u]`);
  return `    for (var t = lane / ${across}u; t < count && written <= last; t += ${team}u) {
      let own = t * ${across}u + written_spot;
      let sum = skip * values[own] + ${sum.join(' + ')};
      y[(row.z + start + t) * ${channels}u + written] = ${type}(sum${gate ? ' * gates[own]' : ''});
    }`;
}
