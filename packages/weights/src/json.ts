/**
 * The first key that stands twice in one object of a valid JSON text; JSON.parse would silently keep the last.
 * Undefined when there is none.
 */
export function duplicateKey(text: string): string | undefined {
  const scopes: (Set<string> | undefined)[] = []; // keys of the open objects, undefined for arrays
  let key = false; // the next string of an object is a key
  for (let at = 0; at < text.length; at++) {
    switch (text[at]) {
      case '{':
        scopes.push(new Set());
        key = true;
        break;
      case '[':
        scopes.push(undefined);
        break;
      case '}':
      case ']':
        scopes.pop();
        break;
      case ':':
        key = false;
        break;
      case ',':
        key = true;
        break;
      case '"': {
        const end = stringEnd(text, at);
        const keys = scopes.at(-1);
        if (key && keys) {
          const name = JSON.parse(text.slice(at, end + 1)) as string;
          if (keys.has(name)) return name;
          keys.add(name);
        }
        at = end;
        break;
      }
      default:
        break;
    }
  }
  return undefined;
}

/** Index of the quote that closes the string opened at `start`. */
function stringEnd(text: string, start: number): number {
  let at = start + 1;
  while (text[at] !== '"') at += text[at] === '\\' ? 2 : 1;
  return at;
}
