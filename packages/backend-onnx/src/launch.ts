import type { Row } from '@dsla/spec';
import type { Tensor } from './binding/binding.js';
import type { Frame } from './frame.js';
import type { HostInputs } from './host-inputs.js';
import type { Kernel } from './kernel.js';
import type { OnnxLayer } from './layer.js';
import type { Port } from './lowering.js';
import { pieceOf } from './nodes/stateful.js';
import type { RowModels } from './program.js';
import type { Recorded } from './record.js';
import type { FrameRow } from './rows.js';
import type { Tables } from './tables.js';

/** One run of a session: rows and tokens of the frame, or a piece of one row. */
export interface Launch {
  readonly kernel: Kernel;
  readonly where: string;
  readonly firstRow: number;
  readonly rows: number;
  readonly start: number;
  readonly tokens: number;
  /** What a row's own inputs are made for. */
  readonly piece?: Pick<Row, 'slot' | 'past' | 'count'>;
}

/** What the sessions of a layer are to do for the rows it serves, in order. */
export function launchesOf({ layer, rows, stores }: Recorded): Launch[] {
  const { stages, whole } = layer.program;
  const [only] = rows;
  const pieces = stages.map((stage) => (stage.kind === 'row' ? pieceOf(stage.node, stores) : Number.POSITIVE_INFINITY));
  const least = Math.min(...pieces);
  if (whole && rows.length === 1 && only!.count > 0 && only!.count <= least)
    return rowLaunches(layer, whole, only!, 0, least);
  return stages.flatMap((stage, index) => {
    if (stage.kind === 'shared') return sharedLaunch(layer.kernel(stage.model), rows);
    const piece = pieces[index]!;
    return rows.flatMap((row, at) =>
      row.count > 0 || stage.node.op === 'foldState' ? rowLaunches(layer, stage.models, row, at, piece) : [],
    );
  });
}

function sharedLaunch(kernel: Kernel, rows: readonly FrameRow[]): Launch[] {
  const tokens = rows.reduce((sum, { count }) => sum + count, 0);
  if (tokens === 0) return [];
  return [{ kernel, where: kernel.model.name, firstRow: 0, rows: rows.length, start: 0, tokens }];
}

/** A row in pieces of at most `limit` tokens: the state goes from one to the next. */
function rowLaunches(layer: OnnxLayer, models: RowModels, row: FrameRow, at: number, limit: number): Launch[] {
  const launches: Launch[] = [];
  const { slot, past, count, start } = row;
  for (let from = 0; from < Math.max(count, 1); from += limit) {
    const tokens = Math.min(limit, count - from);
    const kernel = layer.kernel(tokens === 1 ? models.decode : models.prefill);
    launches.push({
      kernel,
      where: `${kernel.model.name} row ${row.index}`,
      firstRow: at,
      rows: 1,
      start: start + from,
      tokens,
      piece: { slot, past: past + from, count: tokens },
    });
  }
  return launches;
}

/** The tensor that a port of a launch stands for. */
export function tensorOf(
  port: Port,
  { firstRow, rows, start, tokens, piece }: Launch,
  frame: Frame,
  host: HostInputs,
  tables: Tables,
  positions: number,
): Tensor {
  const { source, type } = port;
  switch (source.kind) {
    case 'value': {
      const { memory, offset, width, place } = frame.storage(source.value);
      const [first, count] = place === 'token' ? [start, tokens] : [firstRow, rows];
      return { memory, offset: offset + 4 * first * width, type, dims: [count, width] };
    }
    case 'ids':
      return host.get(`ids ${rowsKey(frame)}`, type, () => ({ dims: [frame.ids.length], data: frame.ids }));
    case 'last':
      return host.get(`last ${rowsKey(frame)}`, type, () => ({ dims: [frame.rows.length], data: lastTokens(frame) }));
    case 'control':
      return host.get(`${source.control.key} of ${piece!.slot} at ${piece!.past}`, type, () =>
        source.control.make(piece!),
      );
    case 'table':
      return tables.get(source.table, positions);
    case 'state': {
      const { tokens: capacity } = frame.stores[source.state]!;
      const dims = port.dims.map((size) => (size === 'tokens' ? capacity : (size as number)));
      return { memory: frame.part(source.state, piece!.slot, source.part), offset: 0, type, dims };
    }
    case 'weight':
      throw new Error('weights are bound once');
  }
}

function rowsKey({ rows }: Frame): string {
  return rows.map(({ index }) => index).join();
}

/** A row without tokens in this step points at the first token. */
function lastTokens({ rows }: Frame): BigInt64Array {
  return BigInt64Array.from(rows, ({ start, count }) => BigInt(Math.max(start + count - 1, 0)));
}
