import type { Named, Row } from '@dsla/spec';
import type { Tensor } from './binding/binding.js';
import type { Frame } from './frame.js';
import type { HostInputs } from './host-inputs.js';
import type { Kernel } from './kernel.js';
import type { OnnxLayer } from './layer.js';
import type { Port } from './lowering.js';
import type { Model } from './model.js';
import { pieceOf } from './nodes/stateful.js';
import type { Recorded, RecordedState } from './record.js';
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
  const pieces = stages.map((stage) => (stage.kind === 'row' ? pieceOf(stage.node, states) : Number.POSITIVE_INFINITY));
  const [only] = served.rows;
  if (whole && served.rows.length === 1 && only!.count === 1)
    return rowLaunches(layer, { decode: whole, prefill: whole }, only!, 0, 1);
  return stages.flatMap((stage, index) => {
    if (stage.kind === 'shared') return sharedLaunch(layer.kernel(stage.model), served);
    return served.rows.flatMap((row, at) =>
      row.count > 0 || stage.node.op === 'foldState' ? rowLaunches(layer, stage, row, at, pieces[index]!) : [],
    );
  });
}

function sharedLaunch(kernel: Kernel, { rows, tokens }: Served): Launch[] {
  return tokens === 0 ? [] : [{ kernel, firstRow: 0, rows: rows.length, start: 0, tokens }];
}

/** A row in pieces of at most `limit` tokens: the state goes from one to the next. */
function rowLaunches(
  layer: OnnxLayer,
  models: { readonly decode: Model; readonly prefill: Model },
  row: ServedRow,
  at: number,
  limit: number,
): Launch[] {
  const launches: Launch[] = [];
  const { slot, past, count, start } = row;
  for (let from = 0; from < Math.max(count, 1); from += limit) {
    const tokens = Math.min(limit, count - from);
    launches.push({
      kernel: layer.kernel(tokens === 1 ? models.decode : models.prefill),
      row: row.index,
      firstRow: at,
      rows: 1,
      start: start + from,
      tokens,
      piece: { slot, past: past + from, count: tokens },
    });
  }
  return launches;
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
  { source, type, dims }: Port,
  { firstRow, rows, start, tokens, piece }: Launch,
  frame: Frame,
  { served, states }: { readonly served: Served; readonly states: Named<RecordedState> },
  { host, tables, positions }: Supplies,
): Tensor {
  switch (source.kind) {
    case 'value': {
      const { memory, offset, width, place } = frame.storage(source.value);
      const [first, count] = place === 'token' ? [start, tokens] : [firstRow, rows];
      return { memory, offset: offset + 4 * first * width, type, dims: [1, count, width] };
    }
    case 'ids':
      return host.get('ids', served.key, type, () => ({ dims: [1, served.tokens], data: served.ids }));
    case 'last':
      return host.get('last', served.key, type, () => ({ dims: [served.rows.length], data: lastTokens(served) }));
    case 'control':
      return host.get(source.control.key, piece!.slot * 2 ** 32 + piece!.past, type, () => source.control.make(piece!));
    case 'table':
      return tables.get(source.table, positions);
    case 'state': {
      const { tokens: capacity, parts } = states[source.state]!;
      const sizes = dims.map((size) => (size === 'tokens' ? capacity : (size as number)));
      return { memory: parts[firstRow]![source.part]!, offset: 0, type, dims: sizes };
    }
    case 'weight':
      throw new Error('weights are bound once');
  }
}

/** A row without tokens in this step points at the first token. */
function lastTokens({ rows }: Served): BigInt64Array {
  return BigInt64Array.from(rows, ({ start, count }) => BigInt(Math.max(start + count - 1, 0)));
}
