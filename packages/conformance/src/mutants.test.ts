import { referenceBackend } from '@dsla/reference';
import {
  type Device,
  type Draw,
  f32,
  fromFloat16,
  type Node,
  type StateStore,
  type Step,
  toFloat16,
  type WeightSource,
} from '@dsla/spec';
import { describe, expect, test } from 'vitest';
import { cases } from './cases/index.js';
import { floats } from './states.js';
import { float32 } from './tolerance.js';

// Can the suite fail? Each of these devices is the reference with one mistake that somebody could make.

interface Mutant {
  readonly mistake: string;
  readonly make: (device: Device) => Device;
  /** Parts of the names of cases that must refuse it. */
  readonly caught: readonly string[];
}

/** `target` with some members replaced. */
function wrap<T extends object>(target: T, members: Partial<T>): T {
  return new Proxy(target, {
    get(_, key) {
      if (key in members) return members[key as keyof T];
      const member = Reflect.get(target, key, target);
      return typeof member === 'function' ? member.bind(target) : member;
    },
  });
}

/** Compiles other nodes than it was given. */
const nodes = (change: (node: Node) => Node) => (device: Device) =>
  wrap(device, {
    compile: (graph, weights, signal) => device.compile({ ...graph, nodes: graph.nodes.map(change) }, weights, signal),
  });

const node = <K extends Node['op']>(op: K, change: (node: Extract<Node, { op: K }>) => object) =>
  nodes((one) => (one.op === op ? ({ ...one, ...change(one as Extract<Node, { op: K }>) } as Node) : one));

const form = (change: (form: Extract<Node, { op: 'dualLinearAttention' }>['form']) => object) =>
  node('dualLinearAttention', (one) => ({ form: { ...one.form, ...change(one.form) } }));

/** Reads other weights than it was given. */
const weights = (pattern: RegExp, change: (x: number) => number) => (device: Device) =>
  wrap(device, {
    compile: (graph, source, signal) => {
      const changed: WeightSource = {
        spec: (name) => source.spec(name),
        async read(name, as) {
          const tensor = await source.read(name, as);
          return pattern.test(name) ? f32(tensor.shape, floats(tensor).map(change)) : tensor;
        },
      };
      return device.compile(graph, changed, signal);
    },
  });

const stores = (change: (store: StateStore) => Partial<StateStore>) => (device: Device) =>
  wrap(device, {
    createState: (spec, slots, tokens) => {
      const store = device.createState(spec, slots, tokens);
      return wrap(store, change(store));
    },
  });

const steps = (change: (step: Step) => Partial<Step>) => (device: Device) =>
  wrap(device, {
    beginStep: (batch, values) => {
      const step = device.beginStep(batch, values);
      return wrap(step, change(step));
    },
  });

/** Draws otherwise than it was told. */
const draws = (change: (draw: Draw) => Draw) => steps((step) => ({ draw: (all) => step.draw!(all.map(change)) }));

const downloads = (change: (x: number, index: number, call: number) => number) => (device: Device) => {
  let call = 0;
  return wrap(device, {
    async download(buffer) {
      const tensor = await device.download(buffer);
      call += 1;
      return f32(
        tensor.shape,
        floats(tensor).map((x, index) => change(x, index, call)),
      );
    },
  });
};

const mutants: readonly Mutant[] = [
  {
    mistake: 'scale 1 % too large',
    make: node('softmaxAttention', ({ scale }) => ({ scale: 1.01 * scale })),
    caught: [
      'softmaxAttention > one head of 8',
      'head width 464',
      'attention-h64-t5-p3-gqa',
      'half-blocks > Llama mixer',
    ],
  },
  {
    mistake: 'no rotation',
    make: node('softmaxAttention', () => ({ rope: undefined })),
    caught: ['softmaxAttention > rope', 'softmaxAttention > partial rope', 'golden > rope-64'],
  },
  {
    mistake: 'rotation of all features where some must pass',
    make: node('softmaxAttention', ({ rope, headDim }) => ({
      rope: rope && {
        rotaryDim: headDim,
        frequencies: Array.from({ length: headDim / 2 }, (_, i) => rope.frequencies[i] ?? 0.1),
      },
    })),
    caught: ['softmaxAttention > partial rope'],
  },
  {
    mistake: 'window one token wider, one sink fewer',
    make: node('softmaxAttention', ({ window }) => ({
      window: window?.sinks ? { size: window.size + 1, sinks: window.sinks - 1 } : window,
    })),
    caught: [
      'softmaxAttention > window 8, sinks 2',
      'attention-h8-t33-p0-window',
      'a state of weight 0 leaves the window > 8, sinks 4',
    ],
  },
  {
    mistake: 'a window one token wider, one sink fewer in the exact part',
    make: form(({ exact }) => ({
      exact: exact?.sinks ? { ...exact, window: exact.window + 1, sinks: exact.sinks - 1 } : exact,
    })),
    caught: [
      'foldable, window 8, sinks 2',
      'foldable-gqa-s2-w8-t37',
      'a state of weight 0 leaves the window > 1, sinks 4',
    ],
  },
  {
    mistake: 'states that do not decay',
    make: form(() => ({ temperature: 1e9 })),
    caught: ['published, 2 states', 'foldable, window 8, sinks 2', 'dsla-published-h3x8', 'gla-t63-h1-16x16'],
  },
  {
    mistake: 'rotation in the state where there should be none, and the other way round',
    make: form(({ ropeInState }) => ({ ropeInState: !ropeInState })),
    caught: ['foldable, rope in the state', 'foldable, window 8, sinks 2', 'foldable-gqa-s2-w8-t37-rope'],
  },
  {
    mistake: 'equal mix of the states',
    make: weights(/mix|alpha_list/, () => 0),
    caught: ['published, 2 states', 'foldable, window 8, sinks 2', 'dsla-published-h1x16', 'foldable-gqa-s2-w8-t37'],
  },
  {
    mistake: 'states without their weight against the exact part',
    make: weights(/logWeight/, () => 0),
    caught: ['foldable, window 8, sinks 2', 'a state of weight 0', 'foldable-mha-s1-w8-t37'],
  },
  {
    mistake: 'no output norm',
    make: node('dualLinearAttention', () => ({ outputNorm: undefined })),
    caught: ['published, rope in the state, output norm', 'foldable, output norm'],
  },
  {
    mistake: 'eps ten times too large',
    make: node('rmsNorm', ({ eps }) => ({ eps: 10 * eps })),
    caught: ['as small as eps', 'rms-norm-7'],
  },
  {
    mistake: 'silu for gelu',
    make: node('activate', () => ({ fn: 'silu' })),
    caught: ['activate > gelu', 'Zamba hybrid layer'],
  },
  {
    mistake: 'no bias',
    make: node('linear', () => ({ bias: undefined })),
    caught: ['33 to 130 with bias', 'dsla-published-h1x16'],
  },
  {
    mistake: 'convolution without bias',
    make: node('causalConv', () => ({ bias: undefined })),
    caught: ['causalConv > kernel 4', 'conv-t9', 'Zamba Mamba layer'],
  },
  {
    mistake: 'no D term',
    make: weights(/(scan\.|^)d$/, () => 0),
    caught: ['selectiveScan > 1 head', 'scan-t33', 'Zamba Mamba layer'],
  },
  {
    mistake: 'a fold without the gates’ bias',
    make: node('foldState', () => ({ gateBias: undefined })),
    caught: ['a folded cache equals a prefill > window 8', 'as if it had been linear from the start'],
  },
  {
    mistake: 'a fold with gates from the wrong source',
    make: node('foldState', ({ gateSource }) => ({ gateSource: gateSource === 'key' ? 'value' : 'key' })),
    caught: ['no exact part, gates from the key', 'no exact part, gates from the value'],
  },
  {
    mistake: 'rows ignored',
    make: steps((step) => ({ run: (layer, states) => step.run(layer, states) })),
    caught: ['leaves the other rows of its outputs as they were'],
  },
  {
    mistake: 'a row’s number for its slot',
    make: (device) =>
      wrap(device, {
        beginStep: (batch, values) =>
          device.beginStep({ ...batch, rows: batch.rows.map((row, slot) => ({ ...row, slot })) }, values),
      }),
    caught: ['many slots in random order', 'prefill and decode in one batch', 'nothing leaks between slots'],
  },
  {
    mistake: 'one more past token than there is',
    make: (device) =>
      wrap(device, {
        beginStep: (batch, values) =>
          device.beginStep({ ...batch, rows: batch.rows.map((row) => ({ ...row, past: row.past + 1 })) }, values),
      }),
    caught: ['entries not written yet > cache, 20 tokens', 'steps > many slots'],
  },
  {
    mistake: 'outputs that depend on when they were asked for',
    make: downloads((x, _, call) => x * (1 + call * 1e-6)),
    caught: ['leaves the other rows bit-equal'],
  },
  {
    mistake: 'one NaN among the outputs',
    make: downloads((x, index) => (index === 5 ? Number.NaN : x)),
    caught: ['linear > 7 to 5', 'prefill and decode equal one pass', 'no NaN anywhere', 'rms-norm-48'],
  },
  {
    mistake: 'clear does nothing',
    make: stores(() => ({ clear: () => {} })),
    caught: ['a cleared slot starts afresh', 'clear heals a ruined slot'],
  },
  {
    mistake: 'copy does nothing',
    make: stores(() => ({ copy: () => {} })),
    caught: ['a copy goes its own way', 'never used clears its target'],
  },
  {
    mistake: 'import does nothing',
    make: stores(() => ({ import: () => {} })),
    caught: ['imported into another', 'scan-t5-state', 'gla-t63-h1-16x16-h0'],
  },
  {
    mistake: 'states exported in half precision',
    make: stores((store) => ({
      async export(slot) {
        return (await store.export(slot)).map(({ shape, ...x }) =>
          f32(shape, fromFloat16(toFloat16(floats({ shape, ...x })))),
        );
      },
    })),
    caught: ['imported into another', 'dualLinearAttention > published, 2 states'],
  },
  { mistake: 'bytes of nothing', make: stores(() => ({ bytes: 0 })), caught: ['bytes follow the specification'] },
  {
    mistake: 'steps that are never freed',
    make: steps(() => ({ [Symbol.dispose]: () => {} })),
    caught: [
      'a model, its states and its steps leave nothing behind',
      'many steps hold no more than one',
      'an error inside a step',
    ],
  },
  {
    mistake: 'a deaf submit',
    make: steps((step) => ({ submit: () => step.submit() })),
    caught: ['a signal stops before the submit'],
  },
  {
    mistake: 'draws that forget k',
    make: draws(({ topK: _, ...draw }) => draw),
    caught: ['draw > temperature and k', 'draw > equals of the last'],
  },
  {
    mistake: 'p of the whole before k',
    make: draws((draw) => (draw.topP && draw.topK ? { ...draw, topK: undefined } : draw)),
    caught: ['draw > k, then p of what is left'],
  },
  {
    mistake: 'draws without temperature',
    make: draws((draw) => ({ ...draw, temperature: Math.min(draw.temperature, 1) })),
    caught: ['draw > p', 'draw > k, then p'],
  },
  {
    mistake: 'a step that ignores ids on the device',
    make: (device) =>
      wrap(device, { beginStep: (batch, { ids: _, ...values } = {}) => device.beginStep(batch, values) }),
    caught: ['draw > the first of the largest'],
  },
  {
    mistake: 'weights held once a layer',
    make: (device) => {
      let layer = 0;
      const strip = (name: string) => name.replace(/#\d+$/, '');
      return wrap(device, {
        compile: (graph, source, signal) => {
          layer += 1;
          const own = graph.nodes.map((one) =>
            one.op === 'linear' ? { ...one, weight: `${one.weight}#${layer}` } : one,
          );
          const stripped: WeightSource = {
            spec: (name) => source.spec(strip(name)),
            read: (name, as) => source.read(strip(name), as),
          };
          return device.compile({ ...graph, nodes: own }, stripped, signal);
        },
      });
    },
    caught: ['held once'],
  },
];

describe.each(mutants)('a device with $mistake', ({ make, caught }) => {
  const chosen = caught.flatMap((part) => {
    const found = cases.filter(({ name }) => name.includes(part));
    if (found.length === 0) throw new Error(`no case is named ${part}`);
    return found;
  });

  test.each(chosen.map((one) => [one.name, one] as const))('is refused by %s', async (_, one) => {
    const reference = await referenceBackend.open();
    const device = make(await referenceBackend.open());
    const error = await one.run({ device, reference, tolerance: float32, open: () => referenceBackend.open() }).then(
      () => undefined,
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(Error);
    expect((error as Error).name, 'a judgement of the suite, not a crash of the device').not.toBe('DslaError');
  });
});
