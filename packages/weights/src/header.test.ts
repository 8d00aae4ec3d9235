import { isDslaError } from '@dsla/spec';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { entry, file } from '../test/files.js';
import { type Header, headerLength, parseHeader } from './header.js';

/** What opening a file does to its bytes. */
function parse(bytes: Uint8Array, fileSize: number = bytes.length): Header {
  const length = headerLength(bytes.subarray(0, 8), 'x.safetensors', fileSize);
  return parseHeader(bytes.subarray(8, 8 + length), 'x.safetensors', fileSize);
}

describe('header', () => {
  it('reads tensors, metadata and padding', () => {
    const header = { __metadata__: { format: 'pt' }, b: entry('F32', [2], 4, 12), a: entry('BF16', [1, 2], 0, 4) };
    const { tensors, metadata } = parse(file(`${JSON.stringify(header)}   `, 12));
    const start = 8 + JSON.stringify(header).length + 3;
    expect(metadata).toEqual({ format: 'pt' });
    expect(Object.fromEntries(tensors)).toEqual({
      a: { storage: 'bf16', shape: [1, 2], file: 'x.safetensors', offset: start, bytes: 4 },
      b: { storage: 'f32', shape: [2], file: 'x.safetensors', offset: start + 4, bytes: 8 },
    });
  });

  it('reads scalars, empty tensors, an empty file, and a tensor called __proto__', () => {
    const { tensors } = parse(file('{"s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}', 8));
    expect(tensors.get('s')).toMatchObject({ storage: 'f64', shape: [], bytes: 8 });
    expect(parse(file({ none: entry('F16', [0, 3], 0, 0) })).tensors.get('none')).toMatchObject({ bytes: 0 });
    expect(parse(file({})).tensors.size).toBe(0);
    const proto = parse(file('{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1));
    expect([...proto.tensors.keys()]).toEqual(['__proto__']);
  });

  const f32 = (shape: unknown, begin: unknown, end: unknown) => file({ w: entry('F32', shape, begin, end) }, 8);
  const utf8 = new TextEncoder();
  const bad: [string, Uint8Array, RegExp][] = [
    ['shorter than its first 8 bytes', new Uint8Array(7), /8 bytes of the header length, got 7/],
    [
      'header longer than the file',
      file({}).subarray(0, 9),
      /header of 2 bytes must lie within the file, got "9 bytes"/,
    ],
    ['header above 100 MB', Uint8Array.of(1, 0xe1, 0xf5, 5, 0, 0, 0, 0), /at most 100000000 bytes, got 100000001/],
    ['header length of 2^63', Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0x80), /at most 100000000 bytes/],
    ['header that is not JSON', file('{"w":'), /must be JSON in UTF-8/],
    ['empty header', file(''), /must be JSON/],
    ['header that is not UTF-8', file(Uint8Array.of(0x7b, 0x22, 0xff, 0x22, 0x7d)), /must be JSON in UTF-8/],
    ['header with a byte-order mark', file('\ufeff{}'), /must be JSON/],
    ['header after white space', file(' {}'), /must be a JSON object/],
    ['header that is an array', file('[]'), /must be a JSON object/],
    ['header that is null', file('null'), /must be a JSON object/],
    ['metadata with a number', file({ __metadata__: { a: 1 } }), /__metadata__ must map names to strings/],
    ['metadata that is a list', file({ __metadata__: [] }), /__metadata__ must map/],
    ['entry that is a number', file({ w: 1 }), /tensor w: its header entry must be an object, got "1"/],
    ['unknown dtype', file({ w: entry('F12', [1], 0, 4) }, 4), /dtype must be one of .*BF16.*, got "F12"/],
    ['dtype in lower case', file({ w: entry('f32', [1], 0, 4) }, 4), /dtype must be one of/],
    ['dtype from the prototype', file({ w: entry('toString', [1], 0, 4) }, 4), /dtype must be one of/],
    ['dtype that cannot be a text', file({ w: { ...entry('F32', [1], 0, 4), dtype: { toString: '' } } }, 4), /got "\{/],
    ['no dtype', file({ w: { shape: [1], data_offsets: [0, 4] } }, 4), /dtype must be one of/],
    ['no shape', file({ w: { dtype: 'F32', data_offsets: [0, 4] } }, 4), /shape must be a list/],
    ['negative dimension', f32([-2], 0, 8), /shape must be a list of integers of at least 0, got "\[-2\]"/],
    ['two negative dimensions', f32([-2, -1], 0, 8), /shape must be a list/],
    ['fractional dimension', f32([1.5], 0, 6), /shape must be a list/],
    ['dimension above 2^53', f32([2 ** 60], 0, 8), /shape must be a list/],
    ['dimensions whose product is above 2^53', f32([2 ** 30, 2 ** 30], 0, 8), /must be below 2\^53 bytes/],
    ['offsets that are not two', file({ w: { dtype: 'F32', shape: [2], data_offsets: [0] } }, 8), /two integers/],
    ['fractional offset', f32([2], 0.5, 8.5), /data_offsets must be two integers/],
    ['offsets backwards', f32([2], 8, 0), /must span the 8 bytes of F32 \[2\], got "8..0"/],
    ['size against shape and dtype', f32([3], 0, 8), /must span the 12 bytes/],
    ['truncated data', f32([4], 0, 16), /truncated: its header promises 79 bytes, got 71/],
    ['data beyond the last tensor', f32([1], 0, 4), /must end with its last tensor/],
    [
      'overlapping tensors',
      file({ a: entry('F32', [2], 0, 8), b: entry('F32', [2], 4, 12) }, 12),
      /tensor b: tensors must not overlap: it must begin at 8, got 4/,
    ],
    [
      'the same bytes twice',
      file({ a: entry('F32', [2], 0, 8), b: entry('F32', [2], 0, 8) }, 8),
      /tensors must not overlap/,
    ],
    [
      'gap between tensors',
      file({ a: entry('F32', [1], 0, 4), b: entry('F32', [1], 8, 12) }, 12),
      /tensor b: tensors must lie end to end, without gaps: it must begin at 4, got 8/,
    ],
    ['gap before the first tensor', file({ a: entry('F32', [1], 4, 8) }, 8), /without gaps/],
    [
      'a name twice',
      file(
        '{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
        2,
      ),
      /no name may stand twice in the header, got "w"/,
    ],
    [
      'a name twice, once escaped',
      file(
        '{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0077":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        1,
      ),
      /no name may stand twice/,
    ],
    ['a key twice in an entry', file('{"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', 1), /twice/],
    ['random text', utf8.encode('<!DOCTYPE html><html>Access denied</html>'), /the header must be at most/],
  ];

  it.each(bad)('refuses a %s', (_, bytes, message) => {
    expect(() => parse(bytes)).toThrow(
      expect.objectContaining({ code: 'E_FORMAT', message: expect.stringMatching(message) }),
    );
  });

  /** True when parsing succeeds or fails with an error of ours. */
  function decent(bytes: Uint8Array, fileSize?: number): boolean {
    try {
      parse(bytes, fileSize);
      return true;
    } catch (error) {
      return isDslaError(error) && error.code === 'E_FORMAT';
    }
  }

  it('never fails otherwise on random bytes', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => decent(bytes)));
    fc.assert(fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => decent(file(bytes))));
  });

  it('never fails otherwise on random JSON and on damaged headers', () => {
    fc.assert(fc.property(fc.json(), fc.nat(64), (json, size) => decent(file(json, size))));
    const field = fc.oneof(fc.jsonValue(), fc.constantFrom('F32', 'BF16', [2, 3], [0, 24], [0, 12]));
    const entries = fc.dictionary(fc.string(), fc.record({ dtype: field, shape: field, data_offsets: field }));
    fc.assert(fc.property(entries, fc.nat(64), (header, size) => decent(file(header, size))));
    const good = file({ __metadata__: { a: 'b' }, w: entry('F32', [2, 1], 0, 8), v: entry('F16', [3], 8, 14) }, 14);
    const damage = fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { minLength: 1, maxLength: 3 });
    fc.assert(
      fc.property(damage, (changes) => {
        const bytes = good.slice();
        for (const [at, value] of changes) bytes[at] = value;
        return decent(bytes);
      }),
      { numRuns: 1000 },
    );
  });
});
