import type { DualForm } from '@dsla/spec';
import { gateWidth } from '@dsla/spec';
import { features, noFeatures } from './dual-features.js';
import { chunks, gammas, results, scalarScores, vectorScores } from './dual-outputs.js';
import { cumulate, entering, walk } from './dual-states.js';
import { exactPart, keep } from './dual-window.js';
import { instructions, matrices } from './matrices.js';
import { type NamedOperator, namedOperator, type Port } from './named.js';
import type { Launch } from './operator.js';

// Dual linear attention of many tokens of one row in float16, as an operator of our own.

export interface OwnDual {
  /** Without queries nothing is read: the states take in the first `past` tokens, from zero, as they come. */
  readonly reads: boolean;
  readonly heads: number;
  readonly form: DualForm;
  /** Width of phi. */
  readonly features: number;
  /** Of the scores of q and k as they are: of the states without an exact part, else of the exact part. */
  readonly scale: number;
  /** One row of mix a head, or one for all. */
  readonly mixPerHead: boolean;
}

/** Whether the kernels take a form: whole vectors of eight, and shared memory for a chunk. */
export function takesDual({ form, features: width }: Pick<OwnDual, 'form' | 'features'>): boolean {
  const { headDim, exact, featureMap: map, normaliser } = form;
  const whole = headDim % 8 === 0 && width % (map ? 16 : 8) === 0 && (width <= 128 || width % 32 === 0);
  return (
    whole && headDim <= 128 && width <= 256 && form.states <= 4 && (exact ? map !== undefined : !map && !normaliser)
  );
}

const chunk = 64; // tokens
/** Columns of a state in a block that walks over the chunks: fewer where that leaves processors without a block. */
function sliceOf({ form }: OwnDual): number {
  const blocks = (columns: number): number => Math.ceil(form.headDim / columns) * form.states * form.kvHeads;
  return form.headDim <= 32 || blocks(64) < 100 ? 32 : 64;
}

/** The same from zero and without queries, of tokens that enter as they come. Inputs: k, v, gates, past (how many there are), the map of keys. */
export function absorbOperator(form: DualForm, width: number): NamedOperator {
  const { exact: _, ...entering } = form;
  return dualOperator({
    reads: false,
    heads: form.kvHeads,
    form: entering,
    features: width,
    scale: 1,
    mixPerHead: false,
  });
}

/**
 * Inputs and outputs by name: see `inputsOf` and `outputsOf`. q [1, T, heads*hd], k and v [1, T, g*hd] as the states want them, gates
 * [1, T, gate width], turnedQ and turnedK rotated. What nothing else reads is handed from kernel to kernel.
 */
export function dualOperator(of: OwnDual): NamedOperator {
  const { reads, form } = of;
  const { exact, featureMap: map, gate } = form;
  const [inputs, outputs] = [inputsOf(of), outputsOf(of)];
  const { constants, launches } = planOf(of);
  const present = new Set([...inputs, ...outputs].map(([name]) => name));
  const reading = [
    gammas,
    chunks,
    gate === 'vector' ? vectorScores : scalarScores,
    exact ? exactPart : '',
    results,
    exact ? keep : '',
  ];
  const source = [
    ...Object.entries(constants).map(([name, value]) => `#define ${name} ${value}`),
    entering,
    instructions,
    matrices,
    map ? features : noFeatures,
    cumulate,
    walk,
    ...(reads ? reading : []),
  ].join('\n');
  return namedOperator({
    name: `DualLinearAttention ${Object.values(constants).join(' ')}`,
    inputs,
    outputs,
    absent: [...queriesOf(of), ...ring('ring', form), ...tables(form), ...startsOf(of)].filter(
      ([name]) => !present.has(name),
    ),
    source,
    launches,
  });
}

function inputsOf(of: OwnDual): readonly Port[] {
  const { reads, heads, form, features: width } = of;
  const { kvHeads, headDim, exact, rope, ropeInState, featureMap: map } = form;
  const stream: readonly Port[] = [
    tokens('k', kvHeads * headDim),
    tokens('v', kvHeads * headDim),
    tokens('gates', gateWidth(form)),
    ['past', 'int64', [1]],
  ];
  const window: readonly Port[] = [
    tokens('turnedQ', heads * headDim),
    tokens('turnedK', kvHeads * headDim),
    ...ring('ring', form),
    ['logWeight', 'float', [heads]],
    ...(rope && !ropeInState ? tables(form) : []),
  ];
  return [
    ...stream,
    ...(map ? [mapOf('mapK', kvHeads, form, width)] : []),
    ...(reads ? queriesOf(of) : []),
    ...(exact ? window : []),
  ];
}

function queriesOf({ heads, form, features: width, mixPerHead }: OwnDual): readonly Port[] {
  const { kvHeads, headDim, states, normaliser, featureMap: map } = form;
  return [
    tokens('q', heads * headDim),
    ['mix', 'float', [mixPerHead ? heads : 1, states]],
    ['before', 'float', [states, kvHeads, width, headDim + Number(normaliser)]],
    ...(map ? [mapOf('mapQ', heads, form, width)] : []),
  ];
}

function tokens(name: string, size: number): Port {
  return [name, 'float16', [1, 'tokens', size]];
}

function mapOf(name: string, count: number, { headDim }: DualForm, width: number): Port {
  return [name, 'float16', [count, width / 2, headDim]];
}

/** The states before every chunk, and their columns of ones. */
function startsOf({ form: { states, kvHeads, headDim }, features: width }: OwnDual): readonly Port[] {
  const chunked = [{ blocks: 'tokens', by: chunk }, states, kvHeads, width];
  return [
    ['starts', 'float16', [...chunked, headDim]],
    ['sums', 'float16', chunked],
  ];
}

function outputsOf(of: OwnDual): readonly Port[] {
  const { reads, heads, form, features: width } = of;
  const { kvHeads, headDim, states, exact, normaliser, featureMap: map } = form;
  return [
    ['after', 'float', [states, kvHeads, width, headDim + Number(normaliser)]],
    ...(exact ? ring('kept', form) : []),
    ['decays', 'float', ['tokens', gateWidth(form)]],
    ...(map ? [['phiK', 'float16', ['tokens', kvHeads, width]] as const] : []),
    ...(reads ? [...startsOf(of), tokens('o', heads * headDim)] : []),
    ...(reads && map ? [['phiQ', 'float16', ['tokens', heads, width]] as const] : []),
  ];
}

function tables({ rope }: DualForm): readonly Port[] {
  const dims = ['positions', (rope?.rotaryDim ?? 0) / 2];
  return [
    ['cosines', 'float', dims],
    ['sines', 'float', dims],
  ];
}

function ring(name: string, form: DualForm): readonly Port[] {
  const { kvHeads, headDim, exact } = form;
  const entries = (exact?.sinks ?? 0) + (exact?.window ?? 0);
  return [
    [`${name}Keys`, 'float16', [kvHeads, entries, headDim]],
    [`${name}Values`, 'float16', [kvHeads, entries, headDim]],
    [`${name}Gates`, 'float', [entries, gateWidth(form)]],
  ];
}

function planOf(of: OwnDual): { constants: Readonly<Record<string, number | string>>; launches: readonly Launch[] } {
  const { reads, heads, form, features: width, scale, mixPerHead } = of;
  const { kvHeads, headDim, states, exact, rope, ropeInState, gate, featureMap: map } = form;
  const slice = sliceOf(of);
  const vector = gate === 'vector';
  const [deep, across] = [width, headDim].map((n) => Math.ceil(n / 16) * 16) as [number, number];
  const rows = (count: number, length: number, bytes = 2): number => count * (length + 8) * bytes;
  const [both, values, entries] = [2 * rows(chunk, deep), rows(chunk, across), rows(Math.min(deep, 128), across)];
  const valuesAt = vector ? both : Math.max(both, entries);
  const spaceAt = vector ? both + values : 0;
  const outputBytes = vector
    ? spaceAt + Math.max(entries, rows(chunk, deep, 4))
    : Math.max(valuesAt + values, 3 * values);
  const stages = 2;
  const stageBytes = rows(chunk, deep) + rows(chunk, slice) + (vector ? rows(chunk, deep, 4) : 4 * chunk);
  const float = (x: number): string => `${x.toExponential()}f`;
  const constants = {
    HEADS: heads,
    KV_HEADS: kvHeads,
    STATES: states,
    FEATURES: width,
    COLUMNS: headDim,
    NORMALISER: Number(form.normaliser),
    VECTOR: Number(vector),
    MIXES: mixPerHead ? heads : 1,
    RATE: float(1 / Math.LN2 / form.temperature),
    SCALE: float(scale),
    EXACT_SCALE: float(scale),
    WINDOW: exact?.window ?? 0,
    SINKS: exact?.sinks ?? 0,
    TURNED: exact && rope && !ropeInState ? rope.rotaryDim : 0,
    READ: Number(reads),
    CHUNK: chunk,
    SLICE: slice,
    STAGES: stages,
    STAGE_BYTES: stageBytes,
    RESIDENT: vector || deep > 128 ? 2 : 3,
    VALUES_AT: valuesAt,
    SPACE_AT: spaceAt,
  };
  const every = { blocks: 'tokens', by: chunk };
  const warps = deep / 16 / (deep > 128 ? 2 : 1);
  const mapRows = Math.ceil(width / 32) * 16;
  const mapBytes = rows(mapRows, across) + rows(chunk, Math.max(across, mapRows));
  const launches: (Launch | false)[] = [
    { kernel: 'cumulate', grid: [Math.ceil(gateWidth(form) / 128), every, 1], threads: 128 },
    reads && map !== undefined && { kernel: 'mapQueries', grid: [heads, every, 1], threads: 128, shared: mapBytes },
    map !== undefined && { kernel: 'mapKeys', grid: [kvHeads, every, 1], threads: 128, shared: mapBytes },
    {
      kernel: 'walk',
      grid: [Math.ceil(headDim / slice), states, kvHeads],
      threads: 32 * warps,
      shared: stages * stageBytes + rows(deep, slice),
    },
    reads && { kernel: 'outputs', grid: [heads, every, 1], threads: 2 * chunk, shared: outputBytes },
    exact !== undefined && { kernel: 'keep', grid: [exact.sinks + exact.window, 1, 1], threads: 128 },
  ];
  return { constants, launches: launches.filter((launch) => launch !== false) };
}
