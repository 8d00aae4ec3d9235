import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { duplicateKey } from './json.js';

describe('duplicateKey', () => {
  it.each([
    ['{"a":1,"b":2}', undefined],
    ['{"a":1,"a":2}', 'a'],
    ['{"a":{"a":1},"b":[{"a":1},{"a":2}]}', undefined],
    ['{"x":[1,{"k":"k","k":2}]}', 'k'],
    ['{"a":"\\"a\\":","b":"a"}', undefined],
    ['{"\\u0061":1,"a":2}', 'a'],
    ['{"a\\\\":1,"a":2}', undefined],
    ['["a","a",{"a":["a","b","a"]}]', undefined],
    ['{ "" : 1 , "" : 2 }', ''],
  ])('%s: %s', (text, key) => {
    expect(duplicateKey(text)).toBe(key);
  });

  it('finds a key put twice into any JSON, and none in what JSON.stringify writes', () => {
    fc.assert(
      fc.property(fc.jsonValue(), fc.string(), (value, key) => {
        const [text, name] = [JSON.stringify(value), JSON.stringify(key)];
        expect(duplicateKey(text)).toBeUndefined();
        expect(duplicateKey(`[${text},{${name}:${text},${name}:0}]`)).toBe(key);
      }),
    );
  });
});
