import { fromFloat16, toFloat16 } from '@dsla/spec';
import type { ElementType } from './protobuf.js';

// Numbers as memory holds them: float, or float16 as raw bits.

/** May be the same array. */
export function packed(values: Float32Array, type: ElementType): Float32Array | Uint16Array {
  return type === 'float16' ? toFloat16(values) : values;
}

export function unpacked(bytes: ArrayBuffer, type: ElementType): Float32Array {
  return type === 'float16' ? fromFloat16(new Uint16Array(bytes)) : new Float32Array(bytes);
}
