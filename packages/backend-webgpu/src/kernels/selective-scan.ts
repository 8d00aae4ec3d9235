import { type Activation, activationFunctions, activationName, type Part } from './elementwise.js';
import { type Element, float, type Kernel, kernel, logFunctions, upTo } from './kernel.js';

// S <- exp(dt A) S + dt B x, y = C.S + D x (Gu and Dao 2023, arXiv 2312.00752, equation 2), A = -exp(log_a). One kernel goes
// through all tokens of a row, whatever their number: the entries of a channel's state are shared out among lanes, which is
// enough of them to fill a GPU (section 3.3.2 there has a scan over all tokens instead).

/** Tokens that are staged at once, lanes of a workgroup, tokens between two looks at whether there are more. */
const [staged, lanes, unrolled] = [16, 128, 4];

type ScanPart = Part & { readonly source: number };

/** f of values end to end, each a part of one of the sources. */
export interface ScanOperand {
  readonly parts: readonly ScanPart[];
  readonly fn?: Activation | undefined;
}

/** What a scan is over: channels share b and c with those of their head, and have states of n entries. */
export interface ScanShape {
  readonly heads: number;
  readonly channels: number;
  readonly n: number;
  /** Of x and y. */
  readonly type: Element;
  /** Of the buffers that hold dt [tokens, channels], b and c [tokens, heads*n]. */
  readonly sources: readonly Element[];
  readonly dt: ScanOperand;
  readonly b: ScanOperand;
  readonly c: ScanOperand;
  /** y is multiplied by f of a value z [tokens, channels]. */
  readonly gate?: { readonly fn: Activation; readonly type: Element } | undefined;
}

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
  /** Turns in which the lanes load and write [staged, across] pairs of a token and a channel, and load [staged, team] entries. */
  readonly pairs: readonly number[];
  readonly shares: readonly number[];
}

function cutOf({ heads, channels, n }: ScanShape): Cut {
  const entries = n % 4 === 0 ? 4 : 1;
  const team = n / entries;
  const across = Math.max(Math.floor(lanes / team), 1);
  const size = across * team;
  return {
    entries,
    team,
    across,
    size,
    blocks: Math.ceil(channels / heads / across),
    several: entries === 4 ? 'vec4f' : 'f32',
    pairs: upTo(Math.ceil((staged * across) / size)),
    shares: upTo(Math.ceil((staged * team) / size)),
  };
}

/** Workgroups of a row. */
export function scanGroups(shape: ScanShape): number {
  return shape.heads * cutOf(shape).blocks;
}

const activated = (fn: Activation | undefined, value: string): string =>
  fn ? `${activationName[fn]}(${value})` : value;

type Name = 'dt' | 'b' | 'c';

/** WGSL of a feature of an operand that lies in a part which begins at `begin`; f of dt is left to those who call it. */
function read({ dt, b, c }: ScanShape, name: Name, part: ScanPart, begin: number, feature: string): string {
  const { source, width, stride = width, from = 0 } = part;
  const value = `f32(source${source}[token * ${stride}u + ${feature} + ${from}u - ${begin}u])`;
  return name === 'dt' ? value : activated({ dt, b, c }[name].fn, value);
}

/** Parts of an operand, and where they begin. */
function partsOf({ parts }: ScanOperand): { readonly part: ScanPart; readonly begin: number }[] {
  let end = 0;
  return parts.map((part) => {
    const begin = end;
    end += part.width;
    return { part, begin };
  });
}

/** How the features of a head are read: where they lie in one part of an operand without asking in which. */
function readers(shape: ScanShape, head: number): Readonly<Record<Name, (feature: string) => string>> {
  const { heads, channels, n } = shape;
  const reader = (name: Name, width: number) => {
    const parts = partsOf(shape[name]);
    const own = parts.find(({ part, begin }) => begin <= head * width && (head + 1) * width <= begin + part.width);
    return (feature: string) =>
      own ? read(shape, name, own.part, own.begin, feature) : `${name}_at(token, ${feature})`;
  };
  return { dt: reader('dt', channels / heads), b: reader('b', n), c: reader('c', n) };
}

/** WGSL of the functions `{name}_at` of a token and a feature, which ask. */
function functions(shape: ScanShape): string {
  const reader = (name: Name): string => {
    const parts = partsOf(shape[name]);
    const lines = parts.map(({ part, begin }, index) => {
      const line = `return ${read(shape, name, part, begin, 'feature')};`;
      return index === parts.length - 1 ? `  ${line}` : `  if (feature < ${begin + part.width}u) { ${line} }`;
    });
    return `fn ${name}_at(token: u32, feature: u32) -> f32 {\n${lines.join('\n')}\n}`;
  };
  return [logFunctions, activationFunctions, reader('dt'), reader('b'), reader('c')].join('\n');
}

/**
 * x and y [tokens, channels], state [slots, channels, n]; workgroups [scanGroups, rows]. Operands of the next tokens are loaded
 * while the lanes go through the ones before.
 */
export function selectiveScan(shape: ScanShape): Kernel {
  const { heads, channels, type, sources, gate } = shape;
  const cut = cutOf(shape);
  const { team, across, size, blocks, several } = cut;
  const width = channels / heads;
  const next = loadedOf(shape, cut).map(([name, of]) => `  var next_${name} = ${of}();`);
  return kernel({
    name: 'selective-scan',
    buffers: {
      x: [type, 'read'],
      ...Object.fromEntries(sources.map((of, index) => [`source${index}`, [of, 'read'] as const])),
      log_a: [several, 'read'],
      d: ['f32', 'read'],
      ...(gate ? { z: [gate.type, 'read'] as const } : {}),
      y: [type, 'write'],
      state: [several, 'write'],
    },
    module: `${functions(shape)}
var<workgroup> steps: array<vec2f, ${staged * across}>; // dt and dt x
var<workgroup> inputs: array<${several}, ${staged * team}>;
var<workgroup> outputs: array<${several}, ${staged * team}>;
var<workgroup> sums: array<f32, ${staged * size}>;`,
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
  }
  if (first + local <= last) { state[cell] = s; }`,
  });
}

/** What a lane has under way, by name and WGSL type. */
function loadedOf({ gate }: ScanShape, { pairs, shares, several }: Cut): [name: string, type: string][] {
  const own = ['x', 'dt', ...(gate ? ['z'] : [])];
  return [
    ...pairs.flatMap((k) => own.map((name): [string, string] => [`${name}${k}`, 'f32'])),
    ...shares.flatMap((k) => ['b', 'c'].map((name): [string, string] => [`${name}${k}`, several])),
  ];
}

/** Loads of the tokens from `start` on, for heads whose operands lie elsewhere on branches of their own: one that each load has would make it wait. */
function load(shape: ScanShape, cut: Cut, start: string): string {
  const bodies = upTo(shape.heads).map((head) => loads(shape, cut, start, readers(shape, head)));
  const last = bodies.length - 1;
  const ends = bodies.flatMap((body, head) => (head === last || body !== bodies[head + 1] ? [{ body, head }] : []));
  if (ends.length === 1) return bodies[0]!;
  const branches = ends.map(({ body, head }) =>
    head === last ? `{\n${body}\n  }` : `if (head <= ${head}u) {\n${body}\n  }`,
  );
  return `  ${branches.join(' else ')}`;
}

/** As load, of one head; beyond the last token it is loaded again. */
function loads(
  shape: ScanShape,
  { entries, team, across, size, several, pairs, shares }: Cut,
  start: string,
  at: ReturnType<typeof readers>,
): string {
  const { channels, n, gate } = shape;
  const token = (width: number) => `row.z + min(${start} + e / ${width}u, row.w - 1u)`;
  const entriesOf = (name: 'b' | 'c') => {
    const each = upTo(entries).map((i) => at[name](`head * ${n}u + e % ${team}u * ${entries}u + ${i}u`));
    return `${several}(${each.join(', ')})`;
  };
  const own = pairs.map(
    (k) => `    {
      let e = lane + ${k * size}u;
      let token = ${token(across)};
      let at = min(first + e % ${across}u, last);
      next_x${k} = f32(x[token * ${channels}u + at]);
      next_dt${k} = ${at.dt('at')};
${gate ? `      next_z${k} = f32(z[token * ${channels}u + at]);\n` : ''}    }`,
  );
  const shared = shares.map(
    (k) => `    {
      let e = lane + ${k * size}u;
      let token = ${token(team)};
      next_b${k} = ${entriesOf('b')};
      next_c${k} = ${entriesOf('c')};
    }`,
  );
  return [...own, ...shared].join('\n');
}

/** What has been loaded to workgroup memory; x and z stay with the lane that will write y. Tokens beyond the last change nothing. */
function stage({ dt, gate }: ScanShape, { team, across, size, pairs, shares }: Cut): string {
  const own = pairs.map(
    (k) => `    let x${k} = next_x${k};
${gate ? `    let z${k} = next_z${k};\n` : ''}    if (lane + ${k * size}u < ${staged * across}u) {
      let e = lane + ${k * size}u;
      let step = select(0.0, ${activated(dt.fn, `next_dt${k}`)}, e / ${across}u < count);
      steps[e] = vec2f(step, step * x${k});
    }`,
  );
  const shared = shares.map(
    (k) => `    if (lane + ${k * size}u < ${staged * team}u) {
      inputs[lane + ${k * size}u] = next_b${k};
      outputs[lane + ${k * size}u] = next_c${k};
    }`,
  );
  return [...own, ...shared].join('\n');
}

/** A token through the entries of a lane. */
function move({ entries, team, across, size }: Cut, t: string): string {
  return `      {
        let step = steps[(${t}) * ${across}u + local];
        let at = (${t}) * ${team}u + member;
        s = exp2(step.x * a) * s + step.y * inputs[at];
        sums[(${t}) * ${size}u + lane] = ${entries === 4 ? 'dot(outputs[at], s)' : 'outputs[at] * s'};
      }`;
}

/** y of the tokens that have been gone through, from the sums of all lanes of a channel. */
function write({ channels, type, gate }: ScanShape, { team, across, size, pairs }: Cut): string {
  return pairs
    .map(
      (k) => `    {
      let e = lane + ${k * size}u;
      let at = first + e % ${across}u;
      if (e / ${across}u < count && at <= last) {
        var sum = d[at] * x${k};
        for (var m = 0u; m < ${team}u; m++) { sum += sums[e * ${team}u + m]; }
        y[(row.z + start + e / ${across}u) * ${channels}u + at] = ${type}(sum${gate ? ` * ${activated(gate.fn, `z${k}`)}` : ''});
      }
    }`,
    )
    .join('\n');
}
