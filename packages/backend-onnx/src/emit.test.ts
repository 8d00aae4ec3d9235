import { onnx } from 'onnx-proto';
import { describe, expect, it } from 'vitest';
import { GraphBuilder } from './emit.js';
import { float } from './protobuf.js';

function decode(build: (graph: GraphBuilder) => void): onnx.ModelProto {
  const graph = new GraphBuilder();
  build(graph);
  return onnx.ModelProto.decode(graph.finish('test'));
}

describe('the ONNX writer, read back with the official schema', () => {
  it('writes a model header that ONNX Runtime 1.29 accepts', () => {
    const model = decode(() => {});
    expect(Number(model.irVersion)).toBe(10);
    expect(model.opsetImport.map(({ domain, version }) => [domain, Number(version)])).toEqual([
      ['', 21],
      ['com.microsoft', 1],
    ]);
    expect(model.graph?.name).toBe('test');
  });

  it('writes nodes, attributes of every kind and domains', () => {
    const { graph } = decode((b) => {
      const x = b.input('x', 'float', ['rows', 4]);
      b.msOp('Fancy', [x, '', x], { whole: -3, real: float(1), text: 'none', list: [1, 0, -2] });
    });
    const [node] = graph!.node!;
    expect([node!.opType, node!.domain, node!.input]).toEqual(['Fancy', 'com.microsoft', ['x', '', 'x']]);
    const attributes = Object.fromEntries(node!.attribute!.map((each) => [each.name, each]));
    expect([attributes.whole!.type, Number(attributes.whole!.i)]).toEqual([onnx.AttributeProto.AttributeType.INT, -3]);
    expect([attributes.real!.type, attributes.real!.f]).toEqual([onnx.AttributeProto.AttributeType.FLOAT, 1]);
    expect(attributes.text!.type).toBe(onnx.AttributeProto.AttributeType.STRING);
    expect(Buffer.from(attributes.text!.s!).toString()).toBe('none');
    expect(attributes.list!.type).toBe(onnx.AttributeProto.AttributeType.INTS);
    expect(attributes.list!.ints!.map(Number)).toEqual([1, 0, -2]);
  });

  it('writes inputs with fixed and named dimensions, and constants, equal ones once', () => {
    const { graph } = decode((b) => {
      b.input('ids', 'int32', ['tokens']);
      b.op('Two', [b.ints([2 ** 40, -1]), b.ints([2 ** 40, -1]), b.floats(0.5)]);
    });
    const { tensorType } = graph!.input![0]!.type!;
    expect(tensorType!.elemType).toBe(onnx.TensorProto.DataType.INT32);
    expect(tensorType!.shape!.dim!.map(({ dimParam }) => dimParam)).toEqual(['tokens']);
    const [ints, half] = graph!.initializer!;
    expect(graph!.initializer).toHaveLength(2);
    expect([ints!.dataType, ints!.dims!.map(Number)]).toEqual([onnx.TensorProto.DataType.INT64, [2]]);
    expect(Buffer.from(ints!.rawData!).readBigInt64LE(0)).toBe(2n ** 40n);
    expect(half!.dims).toEqual([]);
    expect(Buffer.from(half!.rawData!).readFloatLE(0)).toBe(0.5);
  });

  it('names the file of a constant that lies elsewhere', () => {
    const { graph } = decode((b) => b.elsewhere('w', [2, 3], 'some.file'));
    const [w] = graph!.initializer!;
    const external = onnx.TensorProto.DataLocation.EXTERNAL;
    expect([w!.name, w!.dims!.map(Number), w!.dataLocation]).toEqual(['w', [2, 3], external]);
    expect(w!.externalData!.map(({ key, value }) => [key, value])).toEqual([['location', 'some.file']]);
  });

  it('lets the last node write an output itself, and copies only what is an input or another output', () => {
    const { graph } = decode((b) => {
      const x = b.input('x', 'float', [1]);
      const y = b.op('Neg', [x]);
      const z = b.op('Abs', [y]);
      b.output('first', y, [1]);
      b.output('second', y, [1]);
      b.output('third', x, [1]);
      b.output('fourth', z, [1]);
    });
    expect(graph!.node!.map(({ opType, input, output }) => [opType, input![0], output![0]])).toEqual([
      ['Neg', 'x', 'first'],
      ['Abs', 'first', 'fourth'],
      ['Identity', 'first', 'second'],
      ['Identity', 'x', 'third'],
    ]);
    expect(graph!.output!.map(({ name }) => name)).toEqual(['first', 'second', 'third', 'fourth']);
  });
});
