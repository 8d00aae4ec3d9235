import { featureMemory, featuresOf, mapLoads } from './dual-features.js';
import { type DualShape, entriesOf, gateColumns, ringOf } from './dual-linear-attention.js';
import { gatesOf, numbersFrom, type Reading, readingOf, recordLayout, sharedOf } from './dual-record.js';
import { float, type Kernel, type KernelParts, kernel, logFunctions, shortRow, upTo } from './kernel.js';

import { ringAttention, ringMemory } from './ring-attention.js';
import { type QueryKeyTypes, ropeBuffer, ropeFunctions } from './rope.js';

// The tokens of short rows, one after the other, one workgroup a row and kv head; this is the definition, and decoding.
// `dualArrive` takes a token in and leaves a record of what its states need: everything but the states themselves, which
// recur.ts then reads and writes once.

/**
 * record [tokens, kvHeads, recordLayout().length] of q [tokens, heads*headDim], k and v [tokens, kvHeads*headDim] and the gate
 * logits; q and k of their own types. With an exact part the rings take the token in, and the one that it replaces enters the
 * states. `replay`: a fold, of past tokens without queries.
 */
export function dualArrive(
  shape: DualShape,
  scale: number,
  replay: boolean,
  step: QueryKeyTypes,
  threads = 256,
): Kernel {
  const { form } = shape;
  const { rope, featureMap, exact } = form;
  const size = Math.min(512, threads);
  const shared = replay ? 0 : sharedOf(shape);
  const { length } = recordLayout(shape, replay);
  const reading = readingOf(shape);
  const held = featureMap && shared === 1;
  const queries = [
    featureMap && !held ? mapLoads(shape, size, 'query', `kv * ${shared}u + h`) : '',
    featureMap ? featuresOf(shape, size, 'query', 'h + 1u') : '',
    exact ? ringAttention(shape, size, scale, reading) : '',
  ];
  const parts = [
    stage(shape, size, replay),
    exact ? take(shape, size) : '',
    '    workgroupBarrier();',
    featureMap ? featuresOf(shape, size, 'key', '0u') : '',
    ...(shared > 0 ? [`    for (var h = 0u; h < ${shared}u; h++) {`, ...queries, '    }'] : []),
    '    workgroupBarrier();',
  ];
  return kernel({
    name: replay ? 'dual-arrive-replay' : 'dual-arrive',
    buffers: buffersOf(shape, replay, reading, step),
    module: `${logFunctions}
${rope ? ropeFunctions(rope) : ''}
${exact ? ringOf(form) : ''}
${reading.load === 'vec2u' ? 'fn four_of(a: vec2u) -> vec4f { return vec4f(unpack2x16float(a.x), unpack2x16float(a.y)); }\nfn word_of(a: vec4f) -> vec2u { return vec2u(pack2x16float(a.xy), pack2x16float(a.zw)); }' : ''}
${moduleOf(shape, size, shared, reading)}`,
    size,
    main: `  let row = row_at(group.x);
  if (row.w > ${shortRow}u || row.w == 0u) { return; }
  let kv = group.y;
${featureMap ? mapLoads(shape, size, 'key', 'kv') : ''}
${held ? mapLoads(shape, size, 'query', 'kv') : ''}
  for (var t = 0u; t < row.w; t++) {
    let item = row.z + t;
    let position = row.y + t;
    let out = (item * ${form.kvHeads}u + kv) * ${length}u;
${parts.filter(Boolean).join('\n')}
  }`,
  });
}

function buffersOf(
  shape: DualShape,
  replay: boolean,
  { load }: Reading,
  { q, k }: QueryKeyTypes,
): KernelParts['buffers'] {
  const { form, type } = shape;
  const { featureMap, rope, exact } = form;
  return {
    ...(replay ? {} : { q: [q, 'read'] as const }),
    k: [k, 'read'],
    v: [type, 'read'],
    gates: [type, 'read'],
    ...(featureMap ? { map_key: [load, 'read'] as const } : {}),
    ...(featureMap && !replay ? { map_query: [load, 'read'] as const } : {}),
    ...(rope ? ropeBuffer : {}),
    ...(exact ? ({ ring_k: [load, 'write'], ring_v: [load, 'write'], ring_gates: ['f32', 'write'] } as const) : {}),
    record: ['f32', 'write'],
  };
}

function moduleOf(shape: DualShape, size: number, shared: number, reading: Reading): string {
  const { exact, featureMap, rope } = shape.form;
  const { words, numbers } = reading;
  const turn = (of: string, position: string) =>
    rope ? `turn(f32(${of}[base + c]), f32(${of}[base + partner(c)]), c, ${position}, 1.0)` : `f32(${of}[base + c])`;
  const ring = exact && shared > 0 ? ringMemory(size, shared, reading) : '';
  return `fn key_turned(base: u32, c: u32, position: u32) -> f32 { return ${turn('k', 'position')}; }
${shared > 0 ? `fn query_turned(base: u32, c: u32, position: u32) -> f32 { return ${turn('q', 'position')}; }` : ''}
${ring}
var<workgroup> vectors: array<${numbers}, ${(1 + shared) * words}>; // the key that enters, and queries, as phi takes them
${featureMap ? featureMemory(shape) : ''}`;
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
  // A part that is turned begins and ends with whole loads.
  const turnedBack = (c: string, of: string) => `turn(kept${of}, other${of}, ${c}, position - ${exact?.window}u, -1.0)`;
  const leaving =
    rope && !ropeInState ? upTo(each).map((e) => turnedBack(`c + ${e}u`, each === 1 ? '' : `[${e}]`)) : [];
  const arriving = (c: string) => (rope && ropeInState ? `key_turned(base, ${c}, position)` : `f32(k[base + ${c}])`);
  const enters = exact
    ? `      if (valid) {
        let kept = ${numbersOf(`ring_k[old / ${each}u + w]`)};
${leaving.length > 0 ? `        let other = ${numbersOf(`ring_k[(old + partner(c)) / ${each}u]`)};\n` : ''}        key = ${leaving.length > 0 ? `${numbers}(${leaving.join(', ')})` : 'kept'};
        value = ${numbersOf(`ring_v[old / ${each}u + w]`)};
      }`
    : `      key = ${numbersFrom(reading, arriving)};
      value = ${numbersFrom(reading, (c) => `f32(v[base + ${c}])`)};`;
  const logit = exact
    ? `ring_gates[(row.x * ${entriesOf(form)}u + entry) * ${gateColumns(form)}u + ${gateAt(shape)}]`
    : `f32(gates[item * ${gateColumns(form)}u + ${gateAt(shape)}])`;
  const wanted = (turned: boolean) =>
    numbersFrom(reading, (c) => (turned && rope ? `query_turned(origin, ${c}, position)` : `f32(q[origin + ${c}])`));
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
      ring_k[old / ${each}u + w] = ${word(numbersFrom(reading, (of) => `key_turned(base, ${of}, position)`))};
      ring_v[old / ${each}u + w] = ${word(numbersFrom(reading, (of) => `f32(v[base + ${of}])`))};
    }
    for (var g = lane; g < ${form.states * gatesOf(shape)}u; g += ${size}u) {
      let at = ${gateAt(shape)};
      ring_gates[(row.x * ${entriesOf(form)}u + entry) * ${gateColumns(form)}u + at] = f32(gates[item * ${gateColumns(form)}u + at]);
    }
    storageBarrier();`;
}
