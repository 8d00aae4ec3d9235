import { type Activation, activationFunctions, activationName, type Part } from './elementwise.js';
import { type Element, logFunctions } from './kernel.js';

// What a selective scan is over, and how it reads operands that nobody has put together.

type ScanPart = Part & { readonly source: number };

/** f of values end to end, each a part of one of the sources. */
export interface ScanOperand {
  readonly parts: readonly ScanPart[];
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

export const activated = (fn: Activation | undefined, value: string): string =>
  fn ? `${activationName[fn]}(${value})` : value;

type Name = 'dt' | 'b' | 'c';

/** WGSL of the type of a load, and of the numbers in one. */
export const loadType = (type: Element, each: 1 | 4): string =>
  each === 1 ? type : type === 'f16' ? 'vec2u' : 'vec4f';
export function numbersOf(type: Element, each: 1 | 4, load: string): string {
  if (each === 1) return `f32(${load})`;
  return type === 'f16' ? `four_of(${load})` : load;
}

/** WGSL of the numbers of an operand from a feature on, which lie in a part that begins at `begin`. */
function read(shape: ScanShape, each: 1 | 4, part: ScanPart, begin: number, feature: string): string {
  const { source, width, stride = width, from = 0 } = part;
  const at = `(token * ${stride}u + ${feature} + ${from}u - ${begin}u) / ${each}u`;
  return numbersOf(shape.sources[source]!, each, `source${source}[${at}]`);
}

/** Parts of an operand, and where they begin. */
function partsOf({ parts }: ScanOperand): { readonly part: ScanPart; readonly begin: number }[] {
  let end = 0;
  return parts.map((part) => {
    const begin = end;
    end += part.width;
    return { part, begin };
  });
}

/** How the features of a head are read: where they lie in one part of an operand without asking in which. */
export function readers(
  shape: ScanShape,
  each: 1 | 4,
  head: number,
): Readonly<Record<Name, (feature: string) => string>> {
  const { heads, channels, n } = shape;
  const reader = (name: Name, width: number) => {
    const parts = partsOf(shape[name]);
    const own = parts.find(({ part, begin }) => begin <= head * width && (head + 1) * width <= begin + part.width);
    return (feature: string) =>
      own ? read(shape, each, own.part, own.begin, feature) : `${name}_at(token, ${feature})`;
  };
  return { dt: reader('dt', channels / heads), b: reader('b', n), c: reader('c', n) };
}

/** WGSL of the functions `{name}_at` of a token and a feature, which ask. */
export function readFunctions(shape: ScanShape, each: 1 | 4, numbers: string): string {
  const reader = (name: Name): string => {
    const parts = partsOf(shape[name]);
    const lines = parts.map(({ part, begin }, index) => {
      const line = `return ${read(shape, each, part, begin, 'feature')};`;
      return index === parts.length - 1 ? `  ${line}` : `  if (feature < ${begin + part.width}u) { ${line} }`;
    });
    return `fn ${name}_at(token: u32, feature: u32) -> ${numbers} {\n${lines.join('\n')}\n}`;
  };
  const four = 'fn four_of(a: vec2u) -> vec4f { return vec4f(unpack2x16float(a.x), unpack2x16float(a.y)); }';
  return [logFunctions, activationFunctions, four, reader('dt'), reader('b'), reader('c')].join('\n');
}
