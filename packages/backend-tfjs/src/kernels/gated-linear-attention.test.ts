import { goldenNames, readGolden } from '@dsla/conformance';
import * as tf from '@tensorflow/tfjs-core';
import { beforeAll, describe, it } from 'vitest';
import { expectClose, withoutLeaks } from '../../test/helpers.js';
import { openEngine, use } from '../engines.js';
import { vectorBackward, vectorForward } from './vector-gates.js';

const cases = goldenNames('ops').filter((name) => name.startsWith('gla-'));

describe.each(['cpu', 'wasm'] as const)('gated linear attention on %s', (name) => {
  beforeAll(async () => {
    use(await openEngine(name));
  });

  it.each(cases)('%s: outputs, states and gradients of PyTorch', (file) => {
    const { tensors } = readGolden(`ops/${file}`);
    withoutLeaks(() => {
      const of = (key: string) => {
        const { shape, data } = tensors.get(key)!;
        return tf.tensor(data as Float32Array, [...shape]);
      };
      const byHead = (key: string) => tf.transpose(of(key), [1, 0, 2]); // [T, H, width] to [H, T, width]
      const scale = tensors.get('q')!.shape[2]! ** -0.5;
      const x = {
        q: tf.mul(byHead('q'), scale),
        k: byHead('k'),
        v: byHead('v'),
        decay: byHead('g'),
        initial: of('h0'),
      };
      const { o, state } = vectorForward(x);
      const g = vectorBackward(x, byHead('do'), of('dstate'));
      const back = (y: tf.Tensor) => tf.transpose(y, [1, 0, 2]).dataSync();
      expectClose('o', back(o), tensors.get('o')!.data);
      expectClose('state', state.dataSync(), tensors.get('state')!.data);
      expectClose('dq', back(tf.mul(g.dq, scale)), tensors.get('d.q')!.data);
      expectClose('dk', back(g.dk), tensors.get('d.k')!.data);
      expectClose('dv', back(g.dv), tensors.get('d.v')!.data);
      expectClose('dg', back(g.dDecay), tensors.get('d.g')!.data, 3e-5);
      expectClose('dh0', g.dInitial.dataSync(), tensors.get('d.h0')!.data);
    });
  });
});
