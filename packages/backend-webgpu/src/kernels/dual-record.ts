import type { DualShape } from './dual-linear-attention.js';

// What dual-arrive.ts leaves for recur.ts: of every token and kv head all that its states need.

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

/** Lanes that share a product of two vectors. */
export const team = 4;

/** How keys and values are read: four features at a time, where a head and what is turned of it have whole ones. */
export interface Reading {
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

export function readingOf({ form, type }: DualShape): Reading {
  const { headDim, rope } = form;
  if (headDim % 4 !== 0 || (rope && rope.rotaryDim % 8 !== 0)) {
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

/** WGSL of the numbers of a load from feature c on. */
export const numbersFrom = ({ each }: Reading, of: (c: string) => string): string =>
  each === 1 ? of('c') : `vec4f(${[0, 1, 2, 3].map((i) => of(i === 0 ? 'c' : `c + ${i}u`)).join(', ')})`;
