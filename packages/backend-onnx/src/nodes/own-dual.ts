import type { NodeOf } from '@dsla/spec';
import { dualOperator, type OwnDual, takesDual } from '../cuda/dual-operator.js';
import { dualStepOperator, takesStep } from '../cuda/dual-step.js';
import type { NamedOperator } from '../cuda/named.js';
import type { Dialect } from '../dialect.js';
import type { Ref } from '../emit.js';
import type { Control, Lowering } from '../lowering.js';
import { ropeTables, rotateTokens } from '../rope.js';
import { ints } from './blocks.js';
import { featuresOf } from './feature-map.js';

type Dual = NodeOf<'dualLinearAttention'>;

/** Whether operators of our own compute dual linear attention of many tokens, and folds. `features`: width of phi. */
export function hasOwnDual({ operators, compute }: Dialect, of: Pick<OwnDual, 'form' | 'features'>): boolean {
  return operators && compute === 'float16' && takesDual(of);
}

/** The operator, or undefined where there is none: q [1, T, heads*hd], k and v [1, T, g*hd], gates [1, T, gate width] -> [1, T, heads*hd]. */
export function ownDual(node: Dual, lowering: Lowering, q: Ref, k: Ref, v: Ref, gates: Ref): Ref | undefined {
  const { dialect, shapeOf, floatWeight, weight, past } = lowering;
  const { heads, form, scale, mix, state } = node;
  const { kvHeads, headDim, rope, ropeInState, exact, featureMap: map } = form;
  const features = featuresOf(lowering, map?.key, headDim);
  if (!hasOwnDual(dialect, { form, features })) return undefined;
  const operator = dualOperator({ reads: true, heads, form, features, scale, mixPerHead: shapeOf(mix)[0] !== 1 });
  const turned = (x: Ref, of: number): Ref => (rope ? rotateTokens(lowering, x, of, rope, 'float16') : x);
  const inState = (x: Ref, of: number): Ref => (ropeInState ? turned(x, of) : x);
  const table = (of: 'cos' | 'sin') => (): Ref => lowering.table(ropeTables(rope!)[of]);
  const made = runOwn(operator, lowering, {
    q: () => inState(q, heads),
    k: () => inState(k, kvHeads),
    v: () => v,
    gates: () => gates,
    past: () => lowering.control(pastTokens),
    mix: () => floatWeight(mix),
    mapQ: () => weight(map!.query),
    mapK: () => weight(map!.key),
    turnedQ: () => turned(q, heads),
    turnedK: () => turned(k, kvHeads),
    logWeight: () => floatWeight(exact!.logWeight),
    cosines: table('cos'),
    sines: table('sin'),
    ...Object.fromEntries(partsIn.map((name, part) => [name, (dims) => past(state, part, dims)])),
  });
  for (const [part, name] of partsOut.entries()) {
    const { value, dims } = made.get(name) ?? {};
    if (value !== undefined) lowering.present(state, part, value, dims!);
  }
  return made.get('o')!.value;
}

/** The same of one token of each of B rows, with an exact part: q [B, 1, heads*hd], k and v [B, 1, g*hd], gates [B, 1, gate width]. */
export function ownDualStep(node: Dual, lowering: Lowering, q: Ref, k: Ref, v: Ref, gates: Ref): Ref | undefined {
  const { dialect, shapeOf, floatWeight, weight, rows } = lowering;
  const { heads, form, scale, mix, state } = node;
  const { exact, rope, featureMap: map, headDim, states } = form;
  const features = featuresOf(lowering, map?.key, headDim);
  const step = { heads, form, features, scale, mixPerHead: shapeOf(mix)[0] !== 1 };
  if (!hasOwnDual(dialect, step) || !takesStep(step)) return undefined;
  const dimsOf = (part: number, [, ...rest]: Dims): Dims => [rows(part === 0 ? states : 1), ...rest];
  const table = (of: 'cos' | 'sin') => (): Ref => lowering.table(ropeTables(rope!)[of]);
  const made = runOwn(dualStepOperator(step), lowering, {
    q: () => q,
    k: () => k,
    v: () => v,
    gates: () => gates,
    past: () => lowering.control(pastTokens),
    mix: () => floatWeight(mix),
    logWeight: () => floatWeight(exact!.logWeight),
    mapQ: () => weight(map!.query),
    mapK: () => weight(map!.key),
    cosines: table('cos'),
    sines: table('sin'),
    ...Object.fromEntries(
      partsIn.map((name, part) => [name, (dims) => lowering.past(state, part, dimsOf(part, dims))]),
    ),
  });
  for (const [part, name] of partsOut.entries()) {
    const { value, dims } = made.get(name)!;
    lowering.present(state, part, value, dimsOf(part, dims));
  }
  return made.get('o')!.value;
}

/** Parts of the state, in order. */
const partsIn = ['before', 'ringKeys', 'ringValues', 'ringGates'];
const partsOut = ['after', 'keptKeys', 'keptValues', 'keptGates'];

type Dims = readonly (number | string)[];

/** Adds an operator to a graph: `inputs` makes those that it has. */
export function runOwn(
  operator: NamedOperator,
  { graph }: Lowering,
  inputs: Readonly<Record<string, (dims: Dims) => Ref>>,
): ReadonlyMap<string, { readonly value: Ref; readonly dims: Dims }> {
  const { inputNames, outputNames } = operator;
  const values = graph.own(
    operator,
    inputNames.map((name, at) => inputs[name]!(operator.inputs[at]!.dims as Dims)),
  );
  return new Map(
    outputNames.map((name, at) => [name, { value: values[at]!, dims: operator.outputs[at]!.dims as Dims }]),
  );
}

const pastTokens: Control = { key: 'past', type: 'int64', dims: [1], make: ({ past }) => ints([1], () => past) };
