import type { Draw, StepBatch } from './backend.js';
import { DslaError } from './errors.js';
import type { DualForm, LayerGraph, Node, Value, Weight } from './graph.js';
import { gateWidth } from './layouts.js';

export type WeightShape = (weight: Weight) => readonly number[];

/**
 * Width of every value of a tape (0 for nodes without a value: output, foldState), checked against weights and rules.
 * @throws DslaError E_INPUT that names the tape, the node and the rule.
 */
export function inferWidths(graph: LayerGraph, shapeOf: WeightShape): number[] {
  const widths: number[] = [];
  graph.nodes.forEach((node, index) => {
    const where = `${graph.name} node ${index} (${node.op})`;
    const width = (value: Value): number => {
      if (!(value >= 0 && value < index)) fail(where, 'operands must be earlier nodes', value);
      return widths[value]!;
    };
    widths.push(nodeWidth(node, width, shapeOf, where));
    for (const state of statesOf(node)) {
      if (!graph.states.some((spec) => spec.name === state))
        fail(where, 'its state must be listed in graph.states', state);
    }
  });
  return widths;
}

/** Names of the states that a node reads or writes. */
export function statesOf(node: Node): readonly string[] {
  switch (node.op) {
    case 'softmaxAttention':
    case 'dualLinearAttention':
    case 'causalConv':
    case 'selectiveScan':
      return [node.state];
    case 'foldState':
      return [node.from, node.to];
    default:
      return [];
  }
}

/** Names of the weights that a tape needs, each once, in order of first use. */
export function weightsOf(graph: LayerGraph): readonly Weight[] {
  const names = new Set<Weight>();
  const add = (...weights: (Weight | undefined)[]) => {
    for (const weight of weights) if (weight !== undefined) names.add(weight);
  };
  for (const node of graph.nodes) {
    switch (node.op) {
      case 'embed':
        add(node.table);
        break;
      case 'linear':
      case 'causalConv':
        add(node.weight, node.bias);
        break;
      case 'rmsNorm':
        add(node.weight);
        break;
      case 'dualLinearAttention':
        add(
          node.mix,
          node.form.featureMap?.query,
          node.form.featureMap?.key,
          node.form.exact?.logWeight,
          node.outputNorm?.weight,
        );
        break;
      case 'selectiveScan':
        add(node.logA, node.d);
        break;
      case 'foldState':
        add(node.gateWeight, node.gateBias, node.form.featureMap?.key);
        break;
      case 'call':
        add(...weightsOf(node.body));
        break;
      default:
        break;
    }
  }
  return [...names];
}

/**
 * Checks a batch before anything runs.
 * @throws DslaError E_INPUT: no rows, slot out of range or used twice, ids that do not fill the rows, row past `tokens`.
 */
export function checkBatch(batch: StepBatch, slots: number, tokens: number): void {
  const where = 'beginStep';
  if (batch.rows.length === 0) fail(where, 'a batch must have at least one row', 0);
  const seen = new Set<number>();
  let sum = 0;
  for (const [index, { slot, past, count }] of batch.rows.entries()) {
    const row = `${where} row ${index}`;
    if (!Number.isInteger(slot) || slot < 0 || slot >= slots)
      fail(row, `slot must be an integer in 0..${slots - 1}`, slot);
    if (seen.has(slot)) fail(row, 'a slot may be used by one row only', slot);
    if (!Number.isInteger(past) || past < 0) fail(row, 'past must be an integer of at least 0', past);
    if (!Number.isInteger(count) || count < 0) fail(row, 'count must be an integer of at least 0', count);
    if (past + count > tokens) fail(row, `past + count must be at most the capacity ${tokens}`, past + count);
    seen.add(slot);
    sum += count;
  }
  if (batch.ids.length !== sum) fail(where, `ids must hold the ${sum} tokens of the rows`, batch.ids.length);
}

function nodeWidth(node: Node, width: (value: Value) => number, shapeOf: WeightShape, where: string): number {
  const same = (what: string, got: number, want: number) => {
    if (got !== want) fail(where, `${what} must be ${want} wide`, got);
  };
  const shape = (weight: Weight, ...want: (number | undefined)[]): readonly number[] => {
    const got = shapeOf(weight);
    if (got.length !== want.length || want.some((size, axis) => size !== undefined && size !== got[axis])) {
      fail(where, `weight ${weight} must be [${want.map((size) => size ?? '*').join(', ')}]`, got);
    }
    return got;
  };
  switch (node.op) {
    case 'input':
      return node.width;
    case 'embed':
      return shape(node.table, undefined, undefined)[1]!;
    case 'linear': {
      const out = shape(node.weight, undefined, width(node.x))[0]!;
      if (node.bias !== undefined) shape(node.bias, out);
      return out;
    }
    case 'rmsNorm':
      shape(node.weight, width(node.x));
      return width(node.x);
    case 'add':
    case 'mul':
      same('b', width(node.b), width(node.a));
      return width(node.a);
    case 'concat':
      return width(node.a) + width(node.b);
    case 'slice':
      if (!(node.from >= 0 && node.from < node.to && node.to <= width(node.x))) {
        fail(where, `slice must lie within 0..${width(node.x)}`, [node.from, node.to]);
      }
      return node.to - node.from;
    case 'activate':
    case 'lastToken':
      return width(node.x);
    case 'softmaxAttention': {
      const { heads, kvHeads, headDim } = node;
      same('q', width(node.q), heads * headDim);
      same('k', width(node.k), kvHeads * headDim);
      same('v', width(node.v), kvHeads * headDim);
      if (heads % kvHeads !== 0) fail(where, 'heads must be a multiple of kvHeads', [heads, kvHeads]);
      if (node.window) checkWindow(where, node.window.size, node.window.sinks);
      return heads * headDim;
    }
    case 'dualLinearAttention': {
      const { heads, form } = node;
      checkForm(form, where, shape);
      same('q', width(node.q), heads * form.headDim);
      same('k', width(node.k), form.kvHeads * form.headDim);
      same('v', width(node.v), form.kvHeads * form.headDim);
      same('gates', width(node.gates), gateWidth(form));
      if (heads % form.kvHeads !== 0) fail(where, 'heads must be a multiple of kvHeads', [heads, form.kvHeads]);
      const mixRows = shape(node.mix, undefined, form.states)[0]!;
      if (mixRows !== 1 && mixRows !== heads) fail(where, `mix must have 1 or ${heads} rows`, mixRows);
      if (form.featureMap) shape(form.featureMap.query, heads, undefined, form.headDim);
      if (form.exact) shape(form.exact.logWeight, heads);
      if (node.outputNorm) shape(node.outputNorm.weight, form.headDim);
      return heads * form.headDim;
    }
    case 'causalConv':
      shape(node.weight, width(node.x), 1, undefined);
      if (node.bias !== undefined) shape(node.bias, width(node.x));
      return width(node.x);
    case 'selectiveScan': {
      const channels = width(node.x);
      const n = shape(node.logA, node.heads, channels / node.heads, undefined)[2]!;
      shape(node.d, node.heads, channels / node.heads);
      same('dt', width(node.dt), channels);
      same('b', width(node.b), node.heads * n);
      same('c', width(node.c), node.heads * n);
      return channels;
    }
    case 'foldState': {
      checkForm(node.form, where, shape);
      shape(node.gateWeight, gateWidth(node.form), node.form.kvHeads * node.form.headDim);
      if (node.gateBias !== undefined) shape(node.gateBias, gateWidth(node.form));
      return 0;
    }
    case 'call': {
      const inputs = node.body.nodes.filter((inner) => inner.op === 'input');
      same('the number of inputs', node.inputs.length, inputs.length);
      inputs.forEach((inner, index) => {
        same(`input ${inner.name}`, width(node.inputs[index]!), inner.width);
      });
      const widths = inferWidths(node.body, shapeOf);
      const output = node.body.nodes.find((inner) => inner.op === 'output');
      if (!output) fail(where, 'the body must have an output', 'none');
      return widths[output.x]!;
    }
    case 'output':
      width(node.x);
      return 0;
    default:
      return fail(where, 'the op must be known to this version', (node satisfies never as Node).op);
  }
}

/** @throws DslaError E_INPUT unless there is one draw a row, each in range */
export function checkDraws(draws: readonly Draw[], rows: number): void {
  if (draws.length !== rows) fail('step draw', `must get one draw a row, ${rows}`, draws.length);
  for (const draw of draws) {
    const { temperature, topK = 1, topP = 1, uniform } = draw;
    const sound = temperature >= 0 && topK >= 1 && topP > 0 && topP <= 1 && uniform >= 0 && uniform < 1;
    if (!sound) fail('step draw', 'options must be in range', draw);
  }
}

function checkForm(
  form: DualForm,
  where: string,
  shape: (weight: Weight, ...want: (number | undefined)[]) => unknown,
): void {
  if (!Number.isInteger(form.states) || form.states < 1)
    fail(where, 'states must be an integer of at least 1', form.states);
  if (!(form.temperature > 0)) fail(where, 'temperature must be positive', form.temperature);
  if (form.gate === 'vector' && form.featureMap)
    fail(where, 'vector gates cannot be combined with a feature map', form.gate);
  if (form.normaliser && !form.featureMap)
    fail(where, 'a normaliser needs the positive features of a feature map', 'none');
  if (form.exact && !form.normaliser)
    fail(where, 'an exact part needs a normaliser to be joined under', form.normaliser);
  if (form.exact) checkWindow(where, form.exact.window, form.exact.sinks);
  if (form.featureMap) shape(form.featureMap.key, form.kvHeads, undefined, form.headDim);
}

function checkWindow(where: string, window: number, sinks: number): void {
  if (!Number.isInteger(window) || window < 1) fail(where, 'window must be an integer of at least 1', window);
  if (!Number.isInteger(sinks) || sinks < 0) fail(where, 'sinks must be an integer of at least 0', sinks);
}

function fail(where: string, rule: string, got: unknown): never {
  throw new DslaError('E_INPUT', { where, rule, got });
}
