import { DslaError, type Row } from '@dsla/spec';
import type { Tensor } from './binding/binding.js';
import type { Frame } from './frame.js';
import type { HostInputs } from './host-inputs.js';
import type { Kernel } from './kernel.js';
import type { Port } from './lowering.js';
import { pieceOf } from './nodes/stateful.js';
import type { Recorded } from './record.js';
import type { Served, ServedRow } from './rows.js';
import type { Tables } from './tables.js';

/** One run of a session: all served rows, or a piece of one. */
export interface Launch {
  readonly kernel: Kernel;
  /** The row's index in the batch; absent where all rows are served. */
  readonly row?: number;
  readonly firstRow: number;
  readonly rows: number;
  readonly start: number;
  readonly tokens: number;
  /** What a row's own inputs are made for. */
  readonly piece?: Pick<Row, 'slot' | 'past' | 'count'>;
}

/** What the sessions of a layer are to do for the rows it serves, in order. */
export function launchesOf({ layer, served, states }: Recorded): Launch[] {
  const { stages, whole } = layer.program;
  const { rows, tokens } = served;
  if (whole && rows.length === 1 && tokens === 1) return [rowLaunch(layer.kernel(whole), rows[0]!, 0, 0, 1)];
  const launches: Launch[] = [];
  for (const stage of stages) {
    if (stage.kind === 'shared') {
      if (tokens > 0)
        launches.push({ kernel: layer.kernel(stage.model), firstRow: 0, rows: rows.length, start: 0, tokens });
      continue;
    }
    const fold = stage.node.op === 'foldState';
    for (const [at, row] of rows.entries()) {
      if (row.count === 1) launches.push(rowLaunch(layer.kernel(stage.decode), row, at, 0, 1));
      else if (row.count > 0 || fold)
        inPieces(launches, layer.kernel(stage.prefill), row, at, pieceOf(stage.node, states));
    }
  }
  return launches;
}

/** A row in pieces of at most `limit` tokens: the state goes from one to the next. */
function inPieces(launches: Launch[], kernel: Kernel, row: ServedRow, at: number, limit: number): void {
  for (let from = 0; from === 0 || from < row.count; from += limit)
    launches.push(rowLaunch(kernel, row, at, from, Math.min(limit, row.count - from)));
}

function rowLaunch(kernel: Kernel, row: ServedRow, at: number, from: number, count: number): Launch {
  const { index, slot, past, start } = row;
  const piece = { slot, past: past + from, count };
  return { kernel, row: index, firstRow: at, rows: 1, start: start + from, tokens: count, piece };
}

/** What a step offers to its launches. */
export interface Supplies {
  readonly host: HostInputs;
  readonly tables: Tables;
  /** Longest row after the step, in tokens. */
  readonly positions: number;
}

/** The tensor that a port of a launch stands for. */
export function tensorOf(
  port: Port,
  { firstRow, rows, start, tokens, piece }: Launch,
  frame: Frame,
  { served, states }: Pick<Recorded, 'served' | 'states'>,
  supplies: Supplies,
): Tensor {
  const { source, type, dims } = port;
  switch (source.kind) {
    case 'value': {
      const { memory, offset, width, place } = frame.storage(source.value);
      const [first, count] = place === 'token' ? [start, tokens] : [firstRow, rows];
      return { memory, offset: offset + 4 * first * width, type, dims: [1, count, width] };
    }
    case 'state': {
      const { tokens: capacity, parts } = states[source.state]!;
      const sizes = dims.map((size) => (size === 'tokens' ? capacity : (size as number)));
      return { memory: parts[firstRow]![source.part]!, offset: 0, type, dims: sizes };
    }
    default:
      return suppliedTensor(port, served, piece, supplies);
  }
}

/** What the host makes for a step, each tensor once. */
function suppliedTensor(
  { source, type }: Port,
  served: Served,
  piece: Launch['piece'],
  { host, tables, positions }: Supplies,
): Tensor {
  switch (source.kind) {
    case 'ids':
      return host.get('ids', served.key, type, () => ({ dims: [1, served.tokens], data: served.ids }));
    case 'last':
      return host.get('last', served.key, type, () => ({ dims: [served.rows.length], data: lastTokens(served) }));
    case 'control':
      return host.get(source.control.key, piece!.slot * 2 ** 32 + piece!.past, type, () => source.control.make(piece!));
    case 'table':
      return tables.get(source.table, positions);
    default:
      throw new DslaError('E_INTERNAL', { where: 'onnx', rule: 'weights are bound once', got: source.kind });
  }
}

/** Numbers that tell the tensors of a launch from those of any other: which memory, where in it, how much. */
export function identityOf(
  { kernel, firstRow, rows, start, tokens, piece }: Launch,
  frame: Frame,
  run: Pick<Recorded, 'served' | 'states'>,
  supplies: Supplies,
): number[] {
  const numbers: number[] = [];
  for (const port of kernel.ports) {
    const { source } = port;
    if (source.kind === 'value') {
      const { memory, offset, width, place } = frame.storage(source.value);
      const [first, count] = place === 'token' ? [start, tokens] : [firstRow, rows];
      numbers.push(memory.id, offset + 4 * first * width, count);
    } else if (source.kind === 'state') {
      // The parts of a slot come and go together.
      if (source.part === 0) numbers.push(run.states[source.state]!.parts[firstRow]![0]!.id);
    } else {
      const { memory, dims } = suppliedTensor(port, run.served, piece, supplies);
      numbers.push(memory.id, ...dims);
    }
  }
  return numbers;
}

/** A row without tokens in this step points at the first token. */
function lastTokens({ rows }: Served): BigInt64Array {
  return BigInt64Array.from(rows, ({ start, count }) => BigInt(Math.max(start + count - 1, 0)));
}
