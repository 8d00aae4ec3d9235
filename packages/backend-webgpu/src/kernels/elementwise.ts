import type { NodeOf } from '@dsla/spec';
import { type Domain, type Element, itemAt, items, type Kernel, kernel, logFunctions } from './kernel.js';
import { eightFunctions } from './matrices.js';

/** A value as a kernel sees it: [items, width]. */
export interface Shape {
  readonly width: number;
  readonly type: Element;
}

/** A value that is part of a wider one, from a feature on. */
export interface Part extends Shape {
  readonly stride?: number | undefined;
  readonly from?: number | undefined;
}

export const elementwiseSize = 256;

/** y = f(a, b ...), one thread a feature. */
function elementwise(name: string, domain: Domain, y: Shape, inputs: readonly Shape[], statements: string): Kernel {
  const named = inputs.map((input, index) => ['abc'[index]!, [input.type, 'read']] as const);
  return kernel({
    name,
    buffers: { ...Object.fromEntries(named), y: [y.type, 'write'] },
    module: logFunctions + activationFunctions,
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= ${items[domain]} * ${y.width}u) { return; }
  let item = ${itemAt[domain]}(i / ${y.width}u);
  let feature = i % ${y.width}u;
  let at = item.x * ${y.width}u + feature;
${statements}`,
  });
}

/** Elements that a thread of a pointwise kernel takes: eight neighbours where some are float16. */
export function elementsAThread(...shapes: readonly Shape[]): 1 | 8 {
  return shapes.some(({ type }) => type === 'f16') && shapes.every(({ width }) => width % 8 === 0) ? 8 : 1;
}

/** y = value (WGSL) of numbers of a, b or y itself, elementsAThread at a time. */
function pointwise(
  name: string,
  domain: Domain,
  operands: Readonly<Record<string, Shape>> & { readonly y: Shape },
  value: (of: (operand: string) => string) => string,
): Kernel {
  const { y } = operands;
  const inputs = Object.entries(operands).filter(([label]) => label !== 'y');
  if (elementsAThread(...Object.values(operands)) === 1)
    return elementwise(
      name,
      domain,
      y,
      inputs.map(([, shape]) => shape),
      `  y[at] = ${y.type}(${value((operand) => `f32(${operand}[at])`)});`,
    );
  const wide = (label: string) => operands[label]!.type === 'f32';
  const four = (half: string) => {
    const of = (label: string, e: string) =>
      wide(label) ? `${label}_${half}.${e}` : `${half}_of(${label}_eight).${e}`;
    return `vec4f(${[...'xyzw'].map((e) => value((label) => of(label, e))).join(', ')})`;
  };
  const load = (label: string) =>
    wide(label)
      ? `  let ${label}_low = ${label}[2u * at];\n  let ${label}_high = ${label}[2u * at + 1u];`
      : `  let ${label}_eight = ${label}[at];`;
  const typed = (label: string) => (wide(label) ? 'vec4f' : 'vec4u');
  const buffers = inputs.map(([label]) => [label, [typed(label), 'read']] as const);
  const eights = y.width / 8;
  return kernel({
    name,
    buffers: { ...Object.fromEntries(buffers), y: [typed('y'), 'write'] },
    module: `${logFunctions}${activationFunctions}
${eightFunctions}`,
    size: elementwiseSize,
    main: `  let i = (group.y * groups.x + group.x) * ${elementwiseSize}u + lane;
  if (i >= ${items[domain]} * ${eights}u) { return; }
  let at = ${itemAt[domain]}(i / ${eights}u).x * ${eights}u + i % ${eights}u;
${Object.keys(operands).map(load).join('\n')}
${wide('y') ? `  y[2u * at] = ${four('low')};\n  y[2u * at + 1u] = ${four('high')};` : `  y[at] = eight_of(${four('low')}, ${four('high')});`}`,
  });
}

export function add(domain: Domain, y: Shape, a: Shape, b: Shape): Kernel {
  return pointwise('add', domain, { a, b, y }, (of) => `${of('a')} + ${of('b')}`);
}

export function multiply(domain: Domain, y: Shape, a: Shape, b: Shape): Kernel {
  return pointwise('mul', domain, { a, b, y }, (of) => `${of('a')} * ${of('b')}`);
}

/** y += a, for a residual stream that stays where it is. */
export function accumulate(domain: Domain, y: Shape, a: Shape): Kernel {
  return pointwise('accumulate', domain, { a, y }, (of) => `${of('y')} + ${of('a')}`);
}

/** a, then b; of both f. */
export function concat(domain: Domain, y: Shape, a: Part, b: Part, fn?: Activation): Kernel {
  const read = (name: string, { width, stride = width, from = 0 }: Part, first: number) =>
    `f32(${name}[item.x * ${stride}u + feature + ${from}u - ${first}u])`;
  return elementwise(
    fn ? `concat-${fn}` : 'concat',
    domain,
    y,
    [a, b],
    `  var value = 0.0;
  if (feature < ${a.width}u) { value = ${read('a', a, 0)}; }
  else { value = ${read('b', b, a.width)}; }
  y[at] = ${y.type}(${fn ? `${activationName[fn]}(value)` : 'value'});`,
  );
}

export function slice(domain: Domain, y: Shape, a: Shape, from: number): Kernel {
  return elementwise('slice', domain, y, [a], `  y[at] = ${y.type}(a[item.x * ${a.width}u + feature + ${from}u]);`);
}

/** Also a change of element type. */
export function copy(domain: Domain, y: Shape, a: Shape): Kernel {
  return pointwise('copy', domain, { a, y }, (of) => of('a'));
}

/** From tokens to rows. */
export function lastToken(y: Shape, a: Shape): Kernel {
  return elementwise('lastToken', 'row', y, [a], `  y[at] = ${y.type}(a[item.w * ${a.width}u + feature]);`);
}

export type Activation = NodeOf<'activate'>['fn'];

export function activate(fn: Activation, domain: Domain, y: Shape, a: Shape): Kernel {
  return pointwise(fn, domain, { a, y }, (of) => `${activationName[fn]}(${of('a')})`);
}

/** f(a) * b: the gate of a feed-forward block. */
export function activateMul(fn: Activation, domain: Domain, y: Shape, a: Shape, b: Shape): Kernel {
  return pointwise(`${fn}-mul`, domain, { a, b, y }, (of) => `${activationName[fn]}(${of('a')}) * ${of('b')}`);
}

/** Names of the functions in `activationFunctions` and `logFunctions`. */
export const activationName: Readonly<Record<Activation, string>> = {
  silu: 'silu',
  gelu: 'gelu',
  softplus: 'softplus',
  logSigmoid: 'log_sigmoid',
};

/** erf by Abramowitz and Stegun 7.1.26: absolute error 1.5e-7. */
export const activationFunctions = `
fn silu(x: f32) -> f32 { return x / (1.0 + exp(-max(x, -80.0))); }
fn erf(x: f32) -> f32 {
  let t = 1.0 / (1.0 + 0.3275911 * abs(x));
  let sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return sign(x) * (1.0 - sum * exp(-x * x));
}
fn gelu(x: f32) -> f32 { return 0.5 * x * (1.0 + erf(x * 0.70710678)); }
fn softplus(x: f32) -> f32 { if (x > 20.0) { return x; } return log1p(exp(x)); }`;
