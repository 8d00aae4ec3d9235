// How a kernel is written: WGSL text with a list of bindings, so that a pipeline, its layout and its bind groups follow.

/** Element type of a buffer in a shader. */
export type Element = 'f32' | 'f16';
type Access = 'read' | 'write';
/** Which items a kernel visits: the tokens of the rows, or the last token of every row. */
export type Domain = 'token' | 'row';

export interface Kernel {
  readonly name: string;
  readonly code: string;
  /** Of the buffers of bind group 1, in order. */
  readonly access: readonly Access[];
}

export interface KernelParts {
  readonly name: string;
  /** Buffers of bind group 1 by name, in order: element type (or a WGSL vector of it) and access. */
  readonly buffers: Readonly<Record<string, readonly [type: string, access: Access]>>;
  /** Declarations at module level. */
  readonly module?: string;
  readonly size: number;
  /** Statements of main; `group` (vec3u), `groups` (vec3u) and `lane` (index in the workgroup) are at hand. */
  readonly main: string;
  readonly subgroups?: boolean;
  /** Subgroup matrices; only where the device has them. */
  readonly matrices?: boolean;
}

export function kernel({
  name,
  buffers,
  module = '',
  size,
  main,
  subgroups = false,
  matrices = false,
}: KernelParts): Kernel {
  const entries = Object.entries(buffers);
  const bindings = entries.map(
    ([label, [type, access]], index) =>
      `@group(1) @binding(${index}) var<storage, ${access === 'read' ? 'read' : 'read_write'}> ${label}: array<${type}>;`,
  );
  const text = [module, main, ...bindings].join('\n');
  const enables = [
    /\bf16\b/.test(text) ? 'enable f16;' : '',
    subgroups || matrices ? 'enable subgroups;' : '',
    matrices
      ? 'enable chromium_experimental_subgroup_matrix;\ndiagnostic(off, chromium.subgroup_matrix_uniformity);'
      : '',
  ];
  const ids = subgroups
    ? ', @builtin(subgroup_invocation_id) sub_lane: u32, @builtin(subgroup_size) sub_size: u32'
    : '';
  const code = `${enables.filter(Boolean).join('\n')}
${prelude}
${bindings.join('\n')}
${module}
@compute @workgroup_size(${size})
fn main(@builtin(workgroup_id) group: vec3u, @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) lane: u32${ids}) {
${main}
}
`;
  return { name, code: code.trimStart(), access: entries.map(([, [, access]]) => access) };
}

/** Entry of the first token in what view.ts writes. */
export const firstToken = 4;
/** Entries at the end for every split: the split, its row and the splits of its token, backwards. */
export const endEntries = 3;

// What view.ts writes. Entry 0 counts and entry 1 locates rows, tokens, last tokens, tiles; [2].z is the tokens of a
// chunk, [2].w locates the long rows. Tokens lie at one place, since most kernels begin with them.
// A row is (slot, past, first token in the step, count); a token is (index in the step, row, position, id); a last token is
// (row in the batch, row, position, index in the step). Long rows (row, first chunk, chunks, 0) are cut into tiles (row, first
// token within it, count, chunk that it is in); the keys of the tokens of short rows are cut into splits (index in the step,
// first key, keys, 0), each with all splits of its token (the first, how many, keys of each but the last, 0) and its row (slot,
// past, first token in the step, position of the token). These lie at the end of the buffer, where one load finds them.
const prelude = `@group(0) @binding(0) var<storage, read> batch: array<vec4u>;
fn row_at(i: u32) -> vec4u { return batch[batch[1].x + i]; }
fn token_at(i: u32) -> vec4u { return batch[${firstToken}u + i]; }
fn last_at(i: u32) -> vec4u { return batch[batch[1].z + i]; }
fn tile_at(i: u32) -> vec4u { return batch[batch[1].w + i]; }
fn split_at(i: u32) -> vec4u { return batch[arrayLength(&batch) - ${endEntries}u * i - 1u]; }
fn split_row_at(i: u32) -> vec4u { return batch[arrayLength(&batch) - ${endEntries}u * i - 2u]; }
fn token_splits_at(i: u32) -> vec4u { return batch[arrayLength(&batch) - ${endEntries}u * i - 3u]; }
fn long_at(i: u32) -> vec4u { return batch[batch[2].w + i]; }`;

/** WGSL for the number of items of a domain, and for an item: its x is the index that addresses a value. */
export const items: Readonly<Record<Domain, string>> = { token: 'batch[0].y', row: 'batch[0].x' };
export const itemAt: Readonly<Record<Domain, string>> = { token: 'token_at', row: 'last_at' };

/** Tokens of a tile. */
export const tileTokens = 64;
/** Fewest tokens of a chunk: some tiles of one row, as many for all rows of a view. */
export const leastChunk = 256;
/** WGSL of the tokens of a chunk. */
export const chunkTokens = 'batch[2].z';
/** A row of at most as many tokens is short. */
export const shortRow = 8;
/** A token has up to so many splits, of at least as many keys each, a multiple of `unit`. */
export const splitKeys = { least: 128, unit: 16, splits: 8 } as const;

/** log1p and what is built on it: log(1 + e) loses all digits of a small e. */
export const logFunctions = `fn log1p(e: f32) -> f32 {
  if (e > 0.1) { return log(1.0 + e); }
  return e * (1.0 - e * (0.5 - e * (1.0 / 3.0 - e * (0.25 - e * (0.2 - e * (1.0 / 6.0))))));
}
fn log_sigmoid(x: f32) -> f32 { return min(x, 0.0) - log1p(exp(-abs(x))); }`;

/** Sum and maximum over a workgroup of a power-of-two size; every lane gets the result. */
export function reductions(size: number): string {
  const tree = (name: string, join: string) => `fn ${name}(value: f32, lane: u32) -> f32 {
  workgroupBarrier();
  partial[lane] = value;
  workgroupBarrier();
  for (var step = ${size / 2}u; step > 0u; step >>= 1u) {
    if (lane < step) { partial[lane] = ${join}; }
    workgroupBarrier();
  }
  return partial[0];
}`;
  return `var<workgroup> partial: array<f32, ${size}>;
${tree('sum_all', 'partial[lane] + partial[lane + step]')}
${tree('max_all', 'max(partial[lane], partial[lane + step])')}`;
}

/** 0, 1, ... below n: what is written out so many times. */
export const upTo = (n: number): number[] => [...Array(n).keys()];

/** Number as a WGSL f32 literal. */
export function float(x: number): string {
  const text = Math.fround(x).toPrecision(9);
  return /[.e]/.test(text) ? text : `${text}.0`;
}

export type Grid = readonly [x: number, y: number, z: number];

/** n workgroups when one dimension may be too short (65,535): the kernel reads group.y * groups.x + group.x. */
export function spread(n: number): Grid {
  return n <= 65535 ? [n, 1, 1] : [65535, Math.ceil(n / 65535), 1];
}
