import type { StorageType } from '@dsla/spec';

/** Element types of a safetensors file. The floats among them can be converted, the others only read as bytes. */
export type FileType =
  | StorageType
  | 'f64'
  | 'i64'
  | 'u64'
  | 'i16'
  | 'u16'
  | 'i8'
  | 'u8'
  | 'bool'
  | 'f8_e4m3'
  | 'f8_e5m2';

/** Bytes of one element. */
export const fileBytes: Readonly<Record<FileType, number>> = {
  f64: 8,
  i64: 8,
  u64: 8,
  f32: 4,
  i32: 4,
  u32: 4,
  f16: 2,
  bf16: 2,
  i16: 2,
  u16: 2,
  i8: 1,
  u8: 1,
  bool: 1,
  f8_e4m3: 1,
  f8_e5m2: 1,
};

/** The types as the header spells them: F32, BF16, F8_E4M3. */
export function spell(type: FileType): string {
  return type.toUpperCase();
}

/** Undefined when the format has no such type. */
export function parseType(spelled: string): FileType | undefined {
  const name = spelled.toLowerCase();
  return name in fileBytes && spell(name as FileType) === spelled ? (name as FileType) : undefined;
}
