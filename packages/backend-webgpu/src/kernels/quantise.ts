import { elementwiseSize } from './elementwise.js';
import { type Element, type Grid, type Kernel, kernel, spread } from './kernel.js';

// Matrices in 8 or 4 bits: blocks of 32 neighbours along the width share a float16 scale, value = scale * integer (the schemes
// Q8_0 and Q4_0 of llama.cpp). A buffer holds the integers of all blocks, 16 bytes a load, then their scales, two a word.

export type Quantised = 'q8' | 'q4';
/** How the numbers of a matrix are stored. */
export type Format = Element | Quantised;

export const blockSize = 32;

/** Bits a number takes, without its share of a scale. */
const bits: Readonly<Record<Quantised, number>> = { q8: 8, q4: 4 };

export function isQuantised(format: Format): format is Quantised {
  return format === 'q8' || format === 'q4';
}

export function bytesOf(format: Format, count: number): number {
  if (!isQuantised(format)) return count * (format === 'f32' ? 4 : 2);
  return (count * bits[format]) / 8 + 4 * Math.ceil(count / blockSize / 2);
}

/** WGSL for the word with the scales of a block and its neighbour; the block's place in a row, of a matrix [outputs, width]. */
export function scaleWord(
  format: Quantised,
  buffer: string,
  row: string,
  block: string,
  width: number,
  outputs: number,
): string {
  const scales = (outputs * width * bits[format]) / 128;
  const blocks = width / blockSize;
  // Where rows are whole loads of scales, what a lane reads of them does not depend on the row.
  if (blocks % 8 === 0) return `${buffer}[${scales}u + ${row} * ${blocks / 8}u + ${block} / 8u][${block} / 2u % 4u]`;
  const at = `(${row} * ${blocks}u + ${block})`;
  return `${buffer}[${scales}u + ${at} / 8u][${at} / 2u % 4u]`;
}

/** WGSL for the scale of a block; `at` is an u32 variable with its index. */
function scaleOf(format: Quantised, buffer: string, at: string, count: number): string {
  const scales = (count * bits[format]) / 128;
  return `unpack2x16float(${buffer}[${scales}u + ${at} / 8u][${at} / 2u % 4u])[${at} % 2u]`;
}

/** Two blocks a thread. */
export function pairsGrid(count: number): Grid {
  return spread(Math.ceil(count / blockSize / 2 / elementwiseSize));
}

/**
 * x [count] to blocks. Q8: scale = max |x| / 127. Q4: scale = -m / 8 with m the number of largest magnitude, which becomes -8
 * exactly. `count` is a multiple of 32.
 */
export function quantise(format: Quantised, x: Element, count: number): Kernel {
  const words = (bits[format] * blockSize) / 32;
  const each = blockSize / words;
  const most = format === 'q8' ? 127 : 7;
  const read = x === 'f32' ? 'x[first + i]' : 'unpack2x16float(x[(first + i) / 2u])[i % 2u]';
  // 8 bits: in order. 4 bits, with 8 added: the low halves of the bytes hold the first four of a word, the high halves the rest.
  const put =
    format === 'q8'
      ? '(u32(i32(value)) & 255u) << (i % 4u * 8u)'
      : 'u32(value + 8.0) << (i % 4u * 8u + i / 4u % 2u * 4u)';
  return kernel({
    name: `quantise-${format}`,
    buffers: { x: [x === 'f32' ? 'f32' : 'u32', 'read'], y: ['u32', 'write'] },
    module: `fn block(b: u32) -> f32 {
  let first = b * ${blockSize}u;
  var most = 0.0;
  for (var i = 0u; i < ${blockSize}u; i++) {
    let value = ${read};
    if (abs(value) > abs(most)) { most = value; }
  }
  let rounded = pack2x16float(vec2f(${format === 'q8' ? 'abs(most) / 127.0' : 'most / -8.0'}, 0.0));
  let scale = unpack2x16float(rounded).x;
  let inverse = select(0.0, 1.0 / scale, scale != 0.0);
  for (var w = 0u; w < ${words}u; w++) {
    var word = 0u;
    for (var i = w * ${each}u; i < (w + 1u) * ${each}u; i++) {
      let value = clamp(round(${read} * inverse), -${most + 1}.0, ${most}.0);
      word |= ${put};
    }
    y[b * ${words}u + w] = word;
  }
  return scale;
}`,
    size: elementwiseSize,
    main: `  let pair = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  let blocks = ${count / blockSize}u;
  if (2u * pair >= blocks) { return; }
  var scales = vec2f(block(2u * pair), 0.0);
  if (2u * pair + 1u < blocks) { scales.y = block(2u * pair + 1u); }
  y[blocks * ${words}u + pair] = pack2x16float(scales);`,
  });
}

/** Blocks back to numbers [count], one load a thread: for products of many items. */
export function dequantise(format: Quantised, y: Element, count: number): Kernel {
  const width = 128 / bits[format];
  const words = ['x', 'y', 'z', 'w'].flatMap((field) =>
    format === 'q8'
      ? [`vec4f(unpack4xI8(load.${field}))`]
      : [
          `vec4f(unpack4xU8(load.${field} & 0x0f0f0f0fu)) - 8.0`,
          `vec4f(unpack4xU8((load.${field} >> 4u) & 0x0f0f0f0fu)) - 8.0`,
        ],
  );
  const values = words.flatMap((value, c) => [
    `  let v${c} = (${value}) * scale;`,
    ...['x', 'y', 'z', 'w'].map((field, i) => `  y[i * ${width}u + ${4 * c + i}u] = ${y}(v${c}.${field});`),
  ]);
  return kernel({
    name: `dequantise-${format}`,
    buffers: { w: ['vec4u', 'read'], y: [y, 'write'] },
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= ${count / width}u) { return; }
  let load = w[i];
  let block = i / ${blockSize / width}u;
  let scale = ${scaleOf(format, 'w', 'block', count)};
${values.join('\n')}`,
  });
}

export function dequantiseGrid(format: Quantised, count: number): Grid {
  return spread(Math.ceil((count * bits[format]) / 128 / elementwiseSize));
}
