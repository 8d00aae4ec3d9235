import type { Shape } from './elementwise.js';
import { blockSize, type Format, isQuantised } from './quantise.js';
import { loadWidth, type VectorShape } from './vector-options.js';

// Which cut of the matrix-vector kernels (linear-vector.ts) a product gets.

/** What a cut is chosen for: products of `items` at most, with so many outputs together; a workgroup may have `threads`. */
export interface VectorWork {
  readonly format: Format;
  readonly items: number;
  readonly lanes: number;
  readonly gated: boolean;
  readonly width: number;
  readonly outputs: number;
  readonly threads?: number | undefined;
}

/** About as many lanes, and at least as many workgroups, as a large device wants together. */
const [busyLanes, busyGroups] = [2 ** 16, 128];
/** Sums that a workgroup has memory for on every device. */
const sumsLimit = 4096;

/** The cut that was fastest on an H200 (docs/results/webgpu-decode.md). */
export function vectorShape(work: VectorWork): VectorShape {
  const { format, items, lanes, gated, width, threads = 256 } = work;
  const own = loadsOf(format, width, threads);
  const size = Math.ceil(width / loadWidth[format] / own / lanes) * lanes;
  const shared = togetherOf(work, size);
  if (shared) return { size, items, lanes, places: 1, ...shared };
  const rows = rowsOf(work, size);
  const shape = { size, items, rows, lanes };
  if (isQuantised(format)) return { ...shape, ahead: Math.min(rows, gated && format === 'q8' ? 4 : 8), places: 1 };
  if (items === 1) return { ...shape, ahead: rows, places: 8 };
  // More loads at once would leave too few registers for x.
  const loads = items === 2 ? 4 : 2;
  const ahead = 2 ** Math.floor(Math.log2(Math.max(loads / own / (gated ? 2 : 1), 1)));
  return { ...shape, ahead: Math.min(rows, ahead), places: 8 };
}

/** Eight teams whose rows are all on their way at once. */
const manyTeams = { teams: 8, rows: 16, ahead: 16 };

/**
 * Teams that quantise x together, where a matrix has rows for workgroups of them to keep the device busy: two where there cannot be
 * more, or rows are gated, of two matrices.
 */
function togetherOf(
  { format, items, lanes, gated, outputs, threads = 256 }: VectorWork,
  size: number,
): Pick<VectorShape, 'rows' | 'ahead' | 'teams'> | undefined {
  if (format !== 'q4' || items !== 1 || lanes < 8) return undefined;
  const groups = outputs / manyTeams.teams / manyTeams.rows;
  if (!gated && manyTeams.teams * size <= threads && groups >= busyGroups / 2) return manyTeams;
  const teams = 2;
  const ahead = gated ? 4 : 8;
  const fair = outputs / (2 * busyGroups * teams);
  if (teams * size > Math.min(threads, 512) || fair < 8) return undefined;
  // Half of the memory is for x.
  const most = ((sumsLimit / 2) * lanes) / (teams * size * (gated ? 2 : 1));
  return { rows: ahead * Math.min(Math.ceil(fair / ahead), Math.floor(most / ahead)), ahead, teams };
}

/** What a workgroup does before its first row is worth while for many rows, where others keep the device busy. */
function rowsOf({ format, items, lanes, gated, outputs }: VectorWork, size: number): number {
  const factors = gated ? 2 : 1;
  const enough = Math.round(Math.log2((outputs * factors * size) / busyLanes));
  const spread = Math.floor(Math.log2(outputs / busyGroups));
  const fitting = Math.floor(Math.log2(((sumsLimit / items) * (lanes / size) - 1) / factors));
  const most = isQuantised(format) ? 32 : items === 1 ? 4 : 16;
  return 2 ** Math.max(Math.min(enough, spread, fitting, Math.log2(most)), 0);
}

/** Features of x that a lane can keep: numbers, or bytes where matrices are quantised. */
const kept = 128;

/** How many items a kernel may take at a time, where a workgroup may have `threads`. */
export function vectorItems(format: Format, width: number, threads = 256): readonly number[] {
  const own = loadWidth[format] * loadsOf(format, width, threads);
  const most = isQuantised(format) ? 2 : 8;
  return [1, 2, 4, 8].filter((items) => items === 1 || (items <= most && items * own <= kept));
}

/** Loads of a lane: smaller workgroups suit quantised matrices. */
function loadsOf(format: Format, width: number, threads: number): number {
  return Math.ceil(width / loadWidth[format] / (isQuantised(format) ? Math.min(threads, 512) : threads));
}

/** Whether products of so wide an x have kernels. */
export function hasVector(format: Format, x: Shape): boolean {
  if (isQuantised(format)) return x.width % (2 * blockSize) === 0;
  return format === x.type && x.width % loadWidth[x.type] === 0;
}
