import { type Activation, activationFunctions, activationName, type Part } from './elementwise.js';
import { chunkTokens, type Element, type Kernel, kernel, logFunctions, shortRow } from './kernel.js';

// S <- exp(dt A) S + dt B x, y = C.S + D x (Gu and Dao 2023, arXiv 2312.00752, equation 2), A = -exp(log_a). Short rows token
// by token; long rows in chunks (section 3.3.2 there has a scan over all tokens instead), with T the sum of dt over a chunk:
//   U of every chunk from zero, and T                        scanStates, all chunks at once
//   S of every chunk from the one before: exp(T A) S + U     scanCarry, all elements at once
//   y from the S of its chunk                                scanOutputs, all chunks at once

export const scanSize = 64;

/** f of values end to end, each a part of one of the sources. */
export interface ScanOperand {
  readonly parts: readonly (Part & { readonly source: number })[];
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

/** Width of chunks [chunks, n + 1, channels]: U, later S, and T. */
export function scanWidth({ channels, n }: ScanShape): number {
  return (n + 1) * channels;
}

const moving = ({ type, sources }: ScanShape) =>
  ({
    x: [type, 'read'],
    ...Object.fromEntries(sources.map((of, index) => [`source${index}`, [of, 'read'] as const])),
    log_a: ['f32', 'read'],
  }) as const;
const reading = ({ type, gate }: ScanShape) =>
  ({
    d: ['f32', 'read'],
    ...(gate ? { z: [gate.type, 'read'] as const } : {}),
    y: [type, 'write'],
  }) as const;

/** WGSL of the functions `{name}_at` of a token and a feature. */
function readers(shape: ScanShape, ...names: readonly ('dt' | 'b' | 'c')[]): string {
  const reader = (name: 'dt' | 'b' | 'c'): string => {
    const { parts, fn } = shape[name];
    let end = 0;
    const lines = parts.map(({ source, width, stride = width, from = 0 }, index) => {
      const value = `f32(source${source}[t * ${stride}u + ${from}u + feature - ${end}u])`;
      end += width;
      const line = `return ${fn ? `${activationName[fn]}(${value})` : value};`;
      return index === parts.length - 1 ? `  ${line}` : `  if (feature < ${end}u) { ${line} }`;
    });
    return `fn ${name}_at(t: u32, feature: u32) -> f32 {\n${lines.join('\n')}\n}`;
  };
  return [logFunctions, activationFunctions, ...names.map(reader)].join('\n');
}

/** Declares s, filled from `start` (by entry), and a. */
const begin = ({ n }: ScanShape, start: string): string => `  var s: array<f32, ${n}>;
  var a: array<f32, ${n}>;
  for (var i = 0u; i < ${n}u; i++) {
    s[i] = ${start};
    a[i] = -exp(log_a[channel * ${n}u + i]);
  }`;

/** The loop over tokens from `first` on; `reads`: y is written. b and c serve all channels of a head. */
function loop({ heads, channels, n, type, gate }: ScanShape, first: string, count: string, reads: boolean): string {
  return `  let head = channel / ${channels / heads}u;
  for (var t = ${first}; t < ${first} + ${count}; t++) {
    let at = t * ${channels}u + channel;
    let step = dt_at(t, channel);
    let input = f32(x[at]);
    ${reads ? 'var sum = d[channel] * input;' : 'total += step;'}
    for (var i = 0u; i < ${n}u; i++) {
      s[i] = exp(step * a[i]) * s[i] + step * input * b_at(t, head * ${n}u + i);
${reads ? `      sum += c_at(t, head * ${n}u + i) * s[i];\n` : ''}    }
${reads ? `    y[at] = ${type}(sum${gate ? ` * ${activationName[gate.fn]}(f32(z[at]))` : ''});\n` : ''}  }`;
}

/** The definition, one thread a row and channel, for short rows; the state [slots, channels, n] stays in registers. */
export function selectiveScan(shape: ScanShape): Kernel {
  const { channels, n } = shape;
  return kernel({
    name: 'selective-scan',
    buffers: { ...moving(shape), ...reading(shape), state: ['f32', 'write'] },
    module: readers(shape, 'dt', 'b', 'c'),
    size: scanSize,
    main: `  let row = row_at(group.y);
  let channel = group.x * ${scanSize}u + lane;
  if (channel >= ${channels}u || row.w > ${shortRow}u) { return; }
  let base = (row.x * ${channels}u + channel) * ${n}u;
${begin(shape, 'state[base + i]')}
${loop(shape, 'row.z', 'row.w', true)}
  for (var i = 0u; i < ${n}u; i++) { state[base + i] = s[i]; }`,
  });
}

const chunkOf = ({ channels }: ScanShape): string => `  let tile = tile_at(group.y);
  let channel = group.x * ${scanSize}u + lane;
  if (channel >= ${channels}u || tile.y % ${chunkTokens} != 0u) { return; }
  let row = row_at(tile.x);
  let first = row.z + tile.y;
  let count = min(${chunkTokens}, row.w - tile.y);`;

/** One thread a chunk and channel. */
export function scanStates(shape: ScanShape): Kernel {
  const { channels, n } = shape;
  return kernel({
    name: 'scan-states',
    buffers: { ...moving(shape), chunks: ['f32', 'write'] },
    module: readers(shape, 'dt', 'b'),
    size: scanSize,
    main: `${chunkOf(shape)}
  var total = 0.0;
${begin(shape, '0.0')}
${loop(shape, 'first', 'count', false)}
  let out = tile.w * ${scanWidth(shape)}u + channel;
  for (var i = 0u; i < ${n}u; i++) { chunks[out + i * ${channels}u] = s[i]; }
  chunks[out + ${n * channels}u] = total;`,
  });
}

/** Workgroups of scanCarry for a row. */
export function carryGroups({ channels, n }: ScanShape): number {
  return Math.ceil((channels * n) / scanSize);
}

/** U becomes the S that its chunk begins with, and the state that of the row's end: one thread a long row, channel and entry. */
export function scanCarry(shape: ScanShape): Kernel {
  const { channels, n } = shape;
  return kernel({
    name: 'scan-carry',
    buffers: { log_a: ['f32', 'read'], chunks: ['f32', 'write'], state: ['f32', 'write'] },
    size: scanSize,
    main: `  let e = group.x * ${scanSize}u + lane;
  if (e >= ${channels * n}u) { return; }
  let long = long_at(group.y);
  let channel = e % ${channels}u;
  let i = e / ${channels}u;
  let own = (row_at(long.x).x * ${channels}u + channel) * ${n}u + i;
  let a = -exp(log_a[channel * ${n}u + i]);
  var s = state[own];
  for (var j = long.y; j < long.y + long.z; j++) {
    let at = j * ${scanWidth(shape)}u;
    let u = chunks[at + e];
    chunks[at + e] = s;
    s = exp(a * chunks[at + ${n * channels}u + channel]) * s + u;
  }
  state[own] = s;`,
  });
}

/** One thread a chunk and channel. */
export function scanOutputs(shape: ScanShape): Kernel {
  const { channels } = shape;
  return kernel({
    name: 'scan-outputs',
    buffers: { ...moving(shape), ...reading(shape), chunks: ['f32', 'read'] },
    module: readers(shape, 'dt', 'b', 'c'),
    size: scanSize,
    main: `${chunkOf(shape)}
${begin(shape, `chunks[tile.w * ${scanWidth(shape)}u + i * ${channels}u + channel]`)}
${loop(shape, 'first', 'count', true)}`,
  });
}
