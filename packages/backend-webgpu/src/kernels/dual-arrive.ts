import { type DualShape, entriesOf, gateColumns, ringOf } from './dual-linear-attention.js';
import { float, type Kernel, type KernelParts, kernel, logFunctions, shortRow } from './kernel.js';
import { ropeBuffer, ropeFunctions } from './rope.js';

// The tokens of short rows, one after the other, one workgroup a row and kv head; this is the definition, and decoding.
// `dualArrive` takes a token in and leaves a record of what its states need: everything but the states themselves, which
// recur.ts then reads and writes once.

/** Float32 numbers of a record, which there is one of for every token and kv head, and where its parts begin. */
export interface RecordLayout {
  /** phi of the key that enters: zeros where none does. */
  readonly key: number;
  /** Its value. */
  readonly value: number;
  /** What is kept of the states: [states, gates of a state and head]. */
  readonly keep: number;
  /** phi of the queries [heads of the kv head, width]; what follows is absent from a replay. */
  readonly queries: number;
  /** The exact part [heads of the kv head, headDim + 1]: weighted values, then the sum of the weights. */
  readonly exact: number;
  readonly length: number;
}

export function recordLayout(shape: DualShape, replay: boolean): RecordLayout {
  const { form, width } = shape;
  const { headDim, states } = form;
  const shared = replay ? 0 : sharedOf(shape);
  const value = width;
  const keep = value + headDim;
  const queries = keep + states * gatesOf(shape);
  const exact = queries + shared * width;
  return { key: 0, value, keep, queries, exact, length: exact + (form.exact ? shared * (headDim + 1) : 0) };
}

/** Query heads of a kv head. */
export const sharedOf = ({ heads, form }: DualShape): number => heads / form.kvHeads;
/** Gates of a state and head. */
export const gatesOf = ({ form }: DualShape): number => (form.gate === 'vector' ? form.headDim : 1);

/** Lanes that share the product of two vectors. */
const team = 4;

/** How keys and values are read: four features at a time, where a head has whole ones. */
interface Reading {
  readonly each: 1 | 4;
  /** Loads of a head. */
  readonly words: number;
  /** WGSL type of a load, and of the numbers in it. */
  readonly load: string;
  readonly numbers: string;
  /** Numbers of a load of keys or values. */
  readonly numbersOf: (load: string) => string;
  readonly product: (a: string, b: string) => string;
}

function readingOf({ form, type }: DualShape): Reading {
  const { headDim } = form;
  if (headDim % 4 !== 0) {
    const product = (a: string, b: string) => `${a} * ${b}`;
    return { each: 1, words: headDim, load: type, numbers: 'f32', numbersOf: (load) => `f32(${load})`, product };
  }
  const half = (load: string) => `four_of(${load})`;
  return {
    each: 4,
    words: headDim / 4,
    load: type === 'f16' ? 'vec2u' : 'vec4f',
    numbers: 'vec4f',
    numbersOf: type === 'f16' ? half : (load) => load,
    product: (a, b) => `dot(${a}, ${b})`,
  };
}

/**
 * record [tokens, kvHeads, recordLayout().length] of q [tokens, heads*headDim], k and v [tokens, kvHeads*headDim] and the gate
 * logits. With an exact part the rings take the token in, and the one that it replaces enters the states. `replay`: a fold, of
 * past tokens without queries.
 */
export function dualArrive(shape: DualShape, scale: number, replay: boolean, threads = 256): Kernel {
  const { form } = shape;
  const { rope, featureMap, exact } = form;
  const size = Math.min(512, threads);
  const shared = replay ? 0 : sharedOf(shape);
  const { length } = recordLayout(shape, replay);
  const reading = readingOf(shape);
  const parts = [
    stage(shape, size, replay),
    exact ? take(shape, size) : '',
    `    workgroupBarrier();`,
    featureMap ? mapped(shape, size, 'key', '0u') : '',
    ...(shared > 0 ? [`    for (var h = 0u; h < ${shared}u; h++) {`] : []),
    featureMap && shared > 0 ? mapped(shape, size, 'query', 'h + 1u') : '',
    exact && shared > 0 ? attend(shape, size, scale, reading) : '',
    ...(shared > 0 ? ['    }'] : []),
    `    workgroupBarrier();`,
  ];
  return kernel({
    name: replay ? 'dual-arrive-replay' : 'dual-arrive',
    buffers: buffersOf(shape, replay, reading),
    module: `${logFunctions}
${rope ? ropeFunctions(rope) : ''}
${exact ? ringOf(form) : ''}
${reading.load === 'vec2u' ? 'fn four_of(a: vec2u) -> vec4f { return vec4f(unpack2x16float(a.x), unpack2x16float(a.y)); }\nfn word_of(a: vec4f) -> vec2u { return vec2u(pack2x16float(a.xy), pack2x16float(a.zw)); }' : ''}
${moduleOf(shape, size, shared, reading)}`,
    size,
    main: `  let row = row_at(group.x);
  if (row.w > ${shortRow}u || row.w == 0u) { return; }
  let kv = group.y;
  for (var t = 0u; t < row.w; t++) {
    let item = row.z + t;
    let position = row.y + t;
    let out = (item * ${form.kvHeads}u + kv) * ${length}u;
${parts.filter(Boolean).join('\n')}
  }`,
  });
}

function buffersOf(shape: DualShape, replay: boolean, { load, numbers }: Reading): KernelParts['buffers'] {
  const { form, type } = shape;
  const { featureMap, rope, exact } = form;
  return {
    ...(replay ? {} : { q: [type, 'read'] as const }),
    k: [type, 'read'],
    v: [type, 'read'],
    gates: [type, 'read'],
    ...(featureMap ? { map_key: [numbers, 'read'] as const } : {}),
    ...(featureMap && !replay ? { map_query: [numbers, 'read'] as const } : {}),
    ...(rope ? ropeBuffer : {}),
    ...(exact ? ({ ring_k: [load, 'write'], ring_v: [load, 'write'], ring_gates: ['f32', 'write'] } as const) : {}),
    record: ['f32', 'write'],
  };
}

/** Names of numbers in a load from feature c on. */
const features = ({ each }: Reading, of: (c: string) => string): string =>
  each === 1 ? of('c') : `vec4f(${[0, 1, 2, 3].map((i) => of(i === 0 ? 'c' : `c + ${i}u`)).join(', ')})`;

function moduleOf(shape: DualShape, size: number, shared: number, reading: Reading): string {
  const { form, width } = shape;
  const { exact, featureMap, rope } = form;
  const { each, words, numbers, numbersOf } = reading;
  const turn = (of: string, position: string) =>
    rope ? `turn(f32(${of}[base + c]), f32(${of}[base + partner(c)]), c, ${position}, 1.0)` : `f32(${of}[base + c])`;
  const at = each === 1 ? '' : `[(base + c) % 4u]`;
  const ring = exact
    ? `fn ring_key(base: u32, c: u32) -> f32 { return ${numbersOf(`ring_k[(base + c) / ${each}u]`)}${at}; }
fn entry_at(n: u32, first: u32, sinks: u32, base: u32) -> u32 {
  return (base + ring_index(select(first + n - sinks, n, n < sinks))) * ${words}u;
}
var<workgroup> turned: array<${numbers}, ${Math.max(shared, 1) * words}>; // queries of the exact part
var<workgroup> scores: array<f32, ${size / team}>;
var<workgroup> joined: array<${numbers}, ${size}>;`
    : '';
  return `fn key_turned(base: u32, c: u32, position: u32) -> f32 { return ${turn('k', 'position')}; }
${shared > 0 ? `fn query_turned(base: u32, c: u32, position: u32) -> f32 { return ${turn('q', 'position')}; }` : ''}
${ring}
var<workgroup> vectors: array<${numbers}, ${(1 + shared) * words}>; // the key that enters, and queries, as phi takes them
${featureMap ? `var<workgroup> mapped: array<f32, ${width / 2}>;` : ''}
${featureMap || exact ? `var<workgroup> partial: array<f32, ${Math.max(size, (width / 2) * team)}>;` : ''}`;
}

/** WGSL of the index of a gate of the head in [states, kvHeads, gates]. */
const gateAt = (shape: DualShape): string =>
  `(g / ${gatesOf(shape)}u * ${shape.form.kvHeads}u + kv) * ${gatesOf(shape)}u + g % ${gatesOf(shape)}u`;

/** What enters, and the queries, to workgroup memory and as far as nothing is to be done to them to the record. */
function stage(shape: DualShape, size: number, replay: boolean): string {
  const { heads, form, width } = shape;
  const { kvHeads, headDim, states, rope, ropeInState, featureMap, exact, temperature } = form;
  const layout = recordLayout(shape, replay);
  const reading = readingOf(shape);
  const { each, words, numbers, numbersOf } = reading;
  const shared = replay ? 0 : sharedOf(shape);
  const put = (to: string, value: string) =>
    each === 1
      ? `      record[${to}] = ${value};`
      : [0, 1, 2, 3].map((i) => `      record[${to} + ${i}u] = ${value}[${i}];`).join('\n');
  const undone = (c: string) =>
    `turn(ring_key(old, ${c}), ring_key(old, partner(${c})), ${c}, position - ${exact?.window}u, -1.0)`;
  const leaving = (c: string) => (rope && !ropeInState ? undone(c) : `ring_key(old, ${c})`);
  const arriving = (c: string) => (rope && ropeInState ? `key_turned(base, ${c}, position)` : `f32(k[base + ${c}])`);
  const enters = exact
    ? `      if (valid) {
        key = ${features(reading, leaving)};
        value = ${numbersOf(`ring_v[old / ${each}u + w]`)};
      }`
    : `      key = ${features(reading, arriving)};
      value = ${features(reading, (c) => `f32(v[base + ${c}])`)};`;
  const logit = exact
    ? `ring_gates[(row.x * ${entriesOf(form)}u + entry) * ${gateColumns(form)}u + ${gateAt(shape)}]`
    : `f32(gates[item * ${gateColumns(form)}u + ${gateAt(shape)}])`;
  const wanted = (turned: boolean) =>
    features(reading, (c) => (turned && rope ? `query_turned(origin, ${c}, position)` : `f32(q[origin + ${c}])`));
  const queries = `    for (var e = lane; e < ${shared * words}u; e += ${size}u) {
      let origin = (item * ${heads}u + kv * ${shared}u) * ${headDim}u + e / ${words}u * ${headDim}u;
      let c = e % ${words}u * ${each}u;
      let query = ${wanted(ropeInState)};
      vectors[${words}u + e] = query;
${featureMap ? '' : put(`out + ${layout.queries}u + e / ${words}u * ${width}u + c`, 'query')}
${exact ? `      turned[e] = ${wanted(true)};` : ''}
    }`;
  return `    let base = (item * ${kvHeads}u + kv) * ${headDim}u;
${
  exact
    ? `    let valid = position >= ${exact.window + exact.sinks}u;
    let entry = ring_index(position);
    let old = ((row.x * ${kvHeads}u + kv) * ${entriesOf(form)}u + entry) * ${headDim}u;`
    : '    let valid = true;'
}
    for (var w = lane; w < ${words}u; w += ${size}u) {
      let c = w * ${each}u;
      var key = ${numbers}();
      var value = ${numbers}();
${enters}
      vectors[w] = key;
${put(`out + ${layout.value}u + c`, 'value')}
${featureMap ? '' : put(`out + ${layout.key}u + c`, 'key')}
    }
    for (var g = lane; g < ${states * gatesOf(shape)}u; g += ${size}u) {
      let logit = ${logit};
      record[out + ${layout.keep}u + g] = select(1.0, exp(log_sigmoid(logit) / ${float(temperature)}), valid);
    }
${shared > 0 ? queries : ''}`;
}

/** The token into the rings, once nobody reads the one before it there. */
function take(shape: DualShape, size: number): string {
  const { form, type } = shape;
  const reading = readingOf(shape);
  const { each, words } = reading;
  const word = (numbers: string) => {
    if (each === 1) return `${type}(${numbers})`;
    return type === 'f16' ? `word_of(${numbers})` : numbers;
  };
  return `    storageBarrier();
    for (var w = lane; w < ${words}u; w += ${size}u) {
      let c = w * ${each}u;
      ring_k[old / ${each}u + w] = ${word(features(reading, (of) => `key_turned(base, ${of}, position)`))};
      ring_v[old / ${each}u + w] = ${word(features(reading, (of) => `f32(v[base + ${of}])`))};
    }
    for (var g = lane; g < ${form.states * gatesOf(shape)}u; g += ${size}u) {
      let at = ${gateAt(shape)};
      ring_gates[(row.x * ${entriesOf(form)}u + entry) * ${gateColumns(form)}u + at] = f32(gates[item * ${gateColumns(form)}u + at]);
    }
    storageBarrier();`;
}

/** phi of a vector to the record: a team of lanes a row of the map, then every lane finds the bound. */
function mapped(shape: DualShape, size: number, of: 'key' | 'query', vector: string): string {
  const { width } = shape;
  const half = width / 2;
  const { words, product } = readingOf(shape);
  const layout = recordLayout(shape, of === 'key');
  const shared = sharedOf(shape);
  const [head, to] =
    of === 'key' ? ['kv', `out + ${layout.key}u`] : [`kv * ${shared}u + h`, `out + ${layout.queries}u + h * ${width}u`];
  const sum = [...Array(team).keys()].map((m) => `partial[f * ${team}u + ${m}u]`).join(' + ');
  const value = (sign: string) => `exp(${sign}mapped[f] - bound)`;
  const put = (sign: string) => (of === 'key' ? `select(0.0, ${value(sign)}, valid)` : value(sign));
  return `    {
      for (var e = lane; e < ${half * team}u; e += ${size}u) {
        let weight = ((${head}) * ${half}u + e / ${team}u) * ${words}u;
        var sum = 0.0;
        for (var j = e % ${team}u; j < ${words}u; j += ${team}u) {
          sum += ${product(`map_${of}[weight + j]`, `vectors[(${vector}) * ${words}u + j]`)};
        }
        partial[e] = sum;
      }
      workgroupBarrier();
      for (var f = lane; f < ${half}u; f += ${size}u) { mapped[f] = ${sum}; }
      workgroupBarrier();
      var bound = 0.0;
      for (var f = 0u; f < ${half}u; f++) { bound = max(bound, abs(mapped[f])); }
      for (var f = lane; f < ${half}u; f += ${size}u) {
        record[${to} + f] = ${put('')};
        record[${to} + ${half}u + f] = ${put('-')};
      }
    }`;
}

/** The exact part of query h: softmax over the ring in one pass over blocks of entries. */
function attend(shape: DualShape, size: number, scale: number, reading: Reading): string {
  const { form } = shape;
  const { kvHeads, headDim, exact } = form;
  const { window, sinks } = exact!;
  const { each, words, numbers, numbersOf, product } = reading;
  const block = size / team;
  const subsets = Math.floor(size / words);
  const layout = recordLayout(shape, false);
  const score = [...Array(team).keys()].map((m) => `partial[lane * ${team}u + ${m}u]`).join(' + ');
  const put =
    each === 1
      ? '        record[into + w] = sum;'
      : [0, 1, 2, 3].map((i) => `        record[into + 4u * w + ${i}u] = sum[${i}];`).join('\n');
  return `    {
      let first = max(position, ${window - 1}u) - ${window - 1}u;
      let sinks = min(${sinks}u, first);
      let visible = sinks + position - first + 1u;
      let entries = (row.x * ${kvHeads}u + kv) * ${entriesOf(form)}u;
      let subset = lane / ${words}u;
      var top = -3e38;
      var total = 0.0;
      var o = ${numbers}();
      for (var begin = 0u; begin < visible; begin += ${block}u) {
        let here = min(${block}u, visible - begin);
        var sum = 0.0;
        if (lane / ${team}u < here) {
          let at = entry_at(begin + lane / ${team}u, first, sinks, entries);
          for (var j = lane % ${team}u; j < ${words}u; j += ${team}u) {
            sum += ${product(numbersOf('ring_k[at + j]'), `turned[h * ${words}u + j]`)};
          }
        }
        partial[lane] = sum;
        workgroupBarrier();
        if (lane < here) { scores[lane] = (${score}) * ${float(scale)}; }
        workgroupBarrier();
        var next = top;
        for (var n = 0u; n < here; n++) { next = max(next, scores[n]); }
        let shrink = exp(max(top - next, -100.0));
        top = next;
        total *= shrink;
        o *= shrink;
        if (subset < ${subsets}u) {
          for (var n = subset; n < here; n += ${subsets}u) {
            let weight = exp(scores[n] - top);
            total += weight;
            o += weight * ${numbersOf(`ring_v[entry_at(begin + n, first, sinks, entries) + lane % ${words}u]`)};
          }
        }
      }
      joined[lane] = o;
      partial[lane] = total;
      workgroupBarrier();
      let into = out + ${layout.exact}u + h * ${headDim + 1}u;
      for (var w = lane; w < ${words}u; w += ${size}u) {
        var sum = ${numbers}();
        for (var s = 0u; s < ${subsets}u; s++) { sum += joined[s * ${words}u + w]; }
${put}
      }
      if (lane == 0u) {
        var sum = 0.0;
        for (var s = 0u; s < ${subsets}u; s++) { sum += partial[s * ${words}u]; }
        record[into + ${headDim}u] = sum;
      }
      workgroupBarrier();
    }`;
}
