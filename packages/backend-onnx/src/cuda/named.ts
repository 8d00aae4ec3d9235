import type { ElementType } from '../protobuf.js';
import type { Launch, Operator } from './operator.js';

/** What an operator reads or makes: its name in CUDA C, and its sizes. */
export type Port = readonly [name: string, type: ElementType, dims: Operator['outputs'][number]['dims']];

/** An operator whose inputs and outputs have names. */
export interface NamedOperator extends Operator {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
}

/**
 * In the source ARGUMENTS stands for the parameters of every kernel, and GIVEN makes `in` of them, a Given, which has pointers by
 * name, null for those `absent`. Sizes that have names are ints of these names.
 */
export function namedOperator(parts: {
  readonly name: string;
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly absent?: readonly Port[];
  readonly source: string;
  readonly launches: readonly Launch[];
}): NamedOperator {
  const { name, inputs, outputs, absent = [], launches } = parts;
  const field =
    (constant: string) =>
    (port: Port): readonly [string, string] => [port[0], `${constant}${kinds[port[1]]}`];
  const present = [...inputs.map(field('const ')), ...outputs.map(field(''))];
  const sizes = new Set(inputs.flatMap(([, , dims]) => dims.filter((size) => typeof size === 'string')));
  const parameters = [
    ...present.map(([own, type]) => `${type} *${own}_`),
    ...Array.from(sizes, (size) => `int ${size}`),
  ];
  const source = `
#define ARGUMENTS ${parameters.join(', ')}
#define GIVEN Given in = {}; ${present.map(([own]) => `in.${own} = ${own}_;`).join(' ')}
struct Given {
${[...present, ...absent.map(field(''))].map(([own, type]) => `  ${type} *${own};`).join('\n')}
};
${parts.source}`;
  return {
    name,
    inputs: inputs.map(([, type, dims]) => ({ type, dims: dims as readonly (number | string)[] })),
    outputs: outputs.map(([, type, dims]) => ({ type, dims })),
    source,
    launches,
    inputNames: inputs.map(([own]) => own),
    outputNames: outputs.map(([own]) => own),
  };
}

const kinds: Readonly<Partial<Record<ElementType, string>>> = { float: 'float', float16: 'half_t', int64: 'long long' };
