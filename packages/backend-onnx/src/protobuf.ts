import protobuf from 'protobufjs/minimal.js';

// The part of onnx.proto that the models need, written field by field (numbers: onnx/onnx.proto, IR version 10).

/** ONNX element types that occur here. */
export type ElementType = 'float' | 'float16' | 'uint8' | 'int32' | 'int64' | 'bool';

const elementTypes: Readonly<Record<ElementType, number>> = {
  float: 1,
  uint8: 2,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
};

export const elementBytes: Readonly<Record<ElementType, number>> = {
  float: 4,
  float16: 2,
  uint8: 1,
  int32: 4,
  int64: 8,
  bool: 1,
};

/** Number of an element type, in files and in the C API alike. */
export function elementCode(type: ElementType): number {
  return elementTypes[type];
}

/** Whole numbers become INT, `float(x)` FLOAT, strings STRING, lists INTS. */
export type Attribute = number | string | readonly number[] | { readonly float: number };

/** Marks an attribute as FLOAT: 1 and 1.0 are the same in JavaScript. */
export function float(value: number): Attribute {
  return { float: value };
}

export interface NodeProto {
  readonly type: string;
  readonly domain: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, Attribute>>;
}

export interface TensorProto {
  readonly name: string;
  readonly type: ElementType;
  readonly dims: readonly number[];
  /** Little endian. */
  readonly bytes?: Uint8Array;
  /** Where the content lies, if not in `bytes`. */
  readonly file?: string;
}

/** A graph input or output; a string is a dimension that is known at the run. */
export interface ValueProto {
  readonly name: string;
  readonly type: ElementType;
  readonly dims: readonly (number | string)[];
}

export interface ModelProto {
  readonly name: string;
  readonly opsets: Readonly<Record<string, number>>;
  readonly nodes: readonly NodeProto[];
  readonly constants: readonly TensorProto[];
  readonly inputs: readonly ValueProto[];
  readonly outputs: readonly ValueProto[];
}

type Writer = protobuf.Writer;
const key = (field: number, wire: 0 | 2 | 5): number => (field << 3) | wire;

export function encodeModel(model: ModelProto): Uint8Array {
  const writer = protobuf.Writer.create();
  writer.uint32(key(1, 0)).int64(10).uint32(key(2, 2)).string('dsla');
  message(writer, 7, () => graph(writer, model));
  for (const [domain, version] of Object.entries(model.opsets)) {
    message(writer, 8, () => writer.uint32(key(1, 2)).string(domain).uint32(key(2, 0)).int64(version));
  }
  return writer.finish();
}

function graph(writer: Writer, model: ModelProto): void {
  for (const proto of model.nodes) message(writer, 1, () => node(writer, proto));
  writer.uint32(key(2, 2)).string(model.name);
  for (const proto of model.constants) message(writer, 5, () => tensor(writer, proto));
  for (const proto of model.inputs) message(writer, 11, () => value(writer, proto));
  for (const proto of model.outputs) message(writer, 12, () => value(writer, proto));
}

function node(writer: Writer, { type, domain, inputs, outputs, attributes }: NodeProto): void {
  for (const name of inputs) writer.uint32(key(1, 2)).string(name);
  for (const name of outputs) writer.uint32(key(2, 2)).string(name);
  writer.uint32(key(4, 2)).string(type);
  for (const [name, content] of Object.entries(attributes)) message(writer, 5, () => attribute(writer, name, content));
  if (domain) writer.uint32(key(7, 2)).string(domain);
}

function attribute(writer: Writer, name: string, content: Attribute): void {
  writer.uint32(key(1, 2)).string(name);
  if (typeof content === 'number') writer.uint32(key(3, 0)).int64(content).uint32(key(20, 0)).int32(2);
  else if (typeof content === 'string') writer.uint32(key(4, 2)).string(content).uint32(key(20, 0)).int32(3);
  else if ('float' in content) writer.uint32(key(2, 5)).float(content.float).uint32(key(20, 0)).int32(1);
  else {
    for (const item of content) writer.uint32(key(8, 0)).int64(item);
    writer.uint32(key(20, 0)).int32(7);
  }
}

function tensor(writer: Writer, { name, type, dims, bytes, file }: TensorProto): void {
  for (const size of dims) writer.uint32(key(1, 0)).int64(size);
  writer.uint32(key(2, 0)).int32(elementTypes[type]).uint32(key(8, 2)).string(name);
  if (bytes) writer.uint32(key(9, 2)).bytes(bytes);
  if (file === undefined) return;
  message(writer, 13, () => writer.uint32(key(1, 2)).string('location').uint32(key(2, 2)).string(file));
  writer.uint32(key(14, 0)).int32(1); // EXTERNAL
}

function value(writer: Writer, { name, type, dims }: ValueProto): void {
  writer.uint32(key(1, 2)).string(name);
  message(writer, 2, () =>
    message(writer, 1, () => {
      writer.uint32(key(1, 0)).int32(elementTypes[type]);
      message(writer, 2, () => {
        for (const size of dims) message(writer, 1, () => dimension(writer, size));
      });
    }),
  );
}

function dimension(writer: Writer, size: number | string): void {
  if (typeof size === 'number') writer.uint32(key(1, 0)).int64(size);
  else writer.uint32(key(2, 2)).string(size);
}

/** A nested message: its content, preceded by its length. */
function message(writer: Writer, field: number, content: () => unknown): void {
  writer.uint32(key(field, 2)).fork();
  content();
  writer.ldelim();
}
