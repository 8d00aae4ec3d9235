// Operators of our own in ONNX graphs (cuda/operator.ts says what one is). Plain JavaScript, as worker.js is.
// ONNX Runtime asks an OrtCustomOp (onnxruntime_c_api.h) through functions of it; those here are called by the thread that makes
// and runs sessions, the only one in which they may be.

const P = 'void *';
const Z = 'size_t';
const structVersion = 17; // the first that has all of the fields below
/** Fields of an OrtCustomOp by their slot, 8 bytes each. */
const slots = {
  name: 2,
  provider: 3,
  inputType: 4,
  inputCount: 5,
  outputType: 6,
  outputCount: 7,
  destroy: 9,
  inputIsRequired: 10,
  outputIsRequired: 11,
  inputMemory: 12,
  create: 17,
  compute: 18,
};
const slotCount = 26;
const elementCodes = { float: 1, uint8: 2, int32: 6, int64: 7, bool: 9, float16: 10 }; // ONNXTensorElementDataType

/** What an operator takes of the room where it is told to ONNX Runtime, in bytes: the structure, two texts. */
const operatorBytes = 512;
const [nameAt, providerAt] = [8 * slotCount, 448];

/** What a size is where names stand for the sizes of `named`. */
export function sizeOf(size, named) {
  if (typeof size === 'number') return size;
  if (typeof size === 'string') {
    if (!named.has(size)) throw new Error(`no input has a dim called ${size}`);
    return named.get(size);
  }
  if ('times' in size) return size.times.reduce((product, each) => product * sizeOf(each, named), 1);
  return Math.ceil(sizeOf(size.blocks, named) / size.by);
}

/** For a thread, once. `at`: makes a function of OrtApi from its name. `provider`: of the kernels; null is the CPU. */
export function loadOperators(koffi, at, provider) {
  const addOperator = at('CustomOpDomain_Add', P, [P, P]);
  const createStatus = at('CreateStatus', P, ['int', 'const char *']);
  const tensors = tensorAccess(at);
  const known = new Map(); // by the address of its OrtCustomOp

  const operatorOf = (address) => known.get(address).operator;
  const compute = (address, context) => {
    const { operator, launch } = known.get(address);
    try {
      const named = new Map();
      const inputs = operator.inputs.map((input, index) => tensors.input(context, index, input, named));
      const outputs = operator.outputs.map(({ dims }, index) =>
        tensors.output(
          context,
          index,
          dims.map((size) => sizeOf(size, named)),
        ),
      );
      launch([...inputs, ...outputs], named);
      return null;
    } catch (error) {
      return createStatus(1, `${operator.name}: ${error.message}`);
    }
  };
  const callback = (result, args, call) => koffi.register(call, koffi.pointer(koffi.proto(null, result, args)));
  const libc = koffi.load('libc.so.6');
  const functions = {
    name: callback(P, [P], (op) => op + BigInt(nameAt)),
    provider: callback(P, [P], (op) => (provider === null ? null : op + BigInt(providerAt))),
    inputType: callback('int', [P, Z], (op, index) => elementCodes[operatorOf(op).inputs[index].type]),
    inputCount: callback(Z, [P], (op) => operatorOf(op).inputs.length),
    outputType: callback('int', [P, Z], (op, index) => elementCodes[operatorOf(op).outputs[index].type]),
    outputCount: callback(Z, [P], (op) => operatorOf(op).outputs.length),
    create: callback(P, [P, P, P, P], (op, _api, _info, out) => {
      koffi.encode(out, 'uint64_t', op);
      return null;
    }),
    compute: callback(P, [P, P], compute),
    // Sessions are released by another thread: a function of libc that does nothing.
    destroy: libc.func('dlsym', P, [P, 'const char *'])(null, 'getpid'),
  };
  const zero = callback('int', [P, Z], () => 0);
  const all = { ...functions, inputIsRequired: zero, outputIsRequired: zero, inputMemory: zero };
  const text = (room, from, to, content) => {
    const bytes = new TextEncoder().encode(`${content}\0`);
    if (bytes.length > to - from) throw new Error(`${content} is too long a name`);
    room.set(bytes, from);
  };
  const tell = (domain, operator, launch, room, from) => {
    const bytes = new Uint8Array(room, from, operatorBytes);
    const fields = new BigUint64Array(room, from, slotCount);
    fields[0] = BigInt(structVersion);
    for (const [field, address] of Object.entries(all)) fields[slots[field]] = address;
    text(bytes, nameAt, providerAt, operator.name);
    text(bytes, providerAt, operatorBytes, provider ?? '');
    const address = koffi.address(bytes);
    known.set(address, { operator, launch });
    const status = addOperator(domain, address);
    if (status) throw new Error(`ONNX Runtime refuses the operator ${operator.name}`);
  };
  return {
    /**
     * Tells operators to an OrtCustomOpDomain. `launcher`: makes of an operator the function that runs it, given the addresses of
     * its inputs and outputs and its named sizes. `room`: 512 bytes for each, as long as there are sessions with them.
     */
    add(domain, operators, launcher, room) {
      operators.forEach((operator, index) => {
        tell(domain, operator, launcher(operator), room, index * operatorBytes);
      });
    },
    /** Those in a room: their session is gone. */
    drop(room) {
      for (let from = 0; from < room.byteLength; from += operatorBytes)
        known.delete(koffi.address(new Uint8Array(room, from)));
    },
  };
}

/**
 * The launcher of a CUDA stream; an operator's launches know their CUfunctions. `launch`: cuLaunchKernelEx, whose structures lie in
 * one block of memory: the arguments' size, how they are handed over, CUlaunchConfig, its one CUlaunchAttribute, the arguments.
 */
export function launcherOn(koffi, launch, stream) {
  const [extraAt, configAt, attributeAt, argumentsAt] = [8, 48, 104, 176];
  const room = new ArrayBuffer(argumentsAt + 4096);
  const start = koffi.address(new Uint8Array(room));
  const at = (offset) => start + BigInt(offset);
  const size = new BigUint64Array(room, 0, 1);
  new BigUint64Array(room, extraAt).set([1n, at(argumentsAt), 2n, start, 0n]); // CU_LAUNCH_PARAM_BUFFER_POINTER, _SIZE, _END
  const geometry = new Uint32Array(room, configAt, 7); // blocks x, y, z, threads x, y, z, bytes of shared memory
  new BigUint64Array(room, configAt + 32).set([stream ?? 0n, at(attributeAt)]);
  const attributes = new Uint32Array(room, configAt + 48, 1);
  new Uint32Array(room, attributeAt).set([6, 0, 1]); // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION: allowed
  return ({ launches }) =>
    (pointers, named) => {
      new BigUint64Array(room, argumentsAt).set(pointers);
      new Int32Array(room, argumentsAt + 8 * pointers.length).set([...named.values()]);
      size[0] = BigInt(8 * pointers.length + 4 * named.size);
      for (const { function: kernel, grid, threads, shared = 0, early = false } of launches) {
        const [x, y = 1, z = 1] = grid.map((blocks) => sizeOf(blocks, named));
        if (x * y * z === 0) continue;
        geometry.set([x, y, z, threads, 1, 1, shared]);
        attributes[0] = Number(early);
        const status = launch(at(configAt), kernel, null, at(extraAt));
        if (status !== 0) throw new Error(`cuLaunchKernelEx: CUDA driver error ${status}`);
      }
    };
}

/** Addresses of the tensors of a kernel's context; what inputs' dims are called goes into `named`. */
function tensorAccess(at) {
  const getInput = at('KernelContext_GetInput', P, [P, Z, P]);
  const getOutput = at('KernelContext_GetOutput', P, [P, Z, P, Z, P]);
  const getData = at('GetTensorMutableData', P, [P, P]);
  const getShape = at('GetTensorTypeAndShape', P, [P, P]);
  const getRank = at('GetDimensionsCount', P, [P, P]);
  const getDims = at('GetDimensions', P, [P, P, Z]);
  const releaseShape = at('ReleaseTensorTypeAndShapeInfo', 'void', [P]);
  const getErrorMessage = at('GetErrorMessage', 'const char *', [P]);
  const releaseStatus = at('ReleaseStatus', 'void', [P]);
  const out = new BigUint64Array(1);
  const made = (call, ...args) => {
    const status = call(...args, out);
    if (!status) return out[0];
    const message = getErrorMessage(status);
    releaseStatus(status);
    throw new Error(message);
  };
  const dimsOf = (value) => {
    const shape = made(getShape, value);
    const rank = Number(made(getRank, shape));
    const dims = new BigInt64Array(rank);
    getDims(shape, dims, rank);
    releaseShape(shape);
    return Array.from(dims, Number);
  };
  return {
    input(context, index, { dims: wanted }, named) {
      const value = made(getInput, context, index);
      const dims = dimsOf(value);
      const fits = (dim, axis) => {
        if (typeof wanted[axis] === 'number') return dim === wanted[axis];
        if (!named.has(wanted[axis])) named.set(wanted[axis], dim);
        return dim === named.get(wanted[axis]);
      };
      if (dims.length !== wanted.length || !dims.every(fits))
        throw new Error(`input ${index} must be [${wanted.join(', ')}], got [${dims.join(', ')}]`);
      return made(getData, value);
    },
    output: (context, index, dims) =>
      made(getData, made(getOutput, context, index, BigInt64Array.from(dims, BigInt), dims.length)),
  };
}
