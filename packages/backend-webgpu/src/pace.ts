// Dawn's binding looks for finished work in a loop of setImmediate and makes a native function for every turn: tens of thousands
// a second, whose collection stops the process for a tenth of a second about every second. It looks the global setImmediate up
// at every turn, so whoever lends it another one for the time of that call sets the pace.

const turn = globalThis.setImmediate;
const longest = 0.2; // ms
const never = new Int32Array(new SharedArrayBuffer(4));
let began = 0;

/**
 * Calls `wait`, which begins to wait for the device. The longer it takes, the less often Dawn looks: after a 16th of the time so
 * far, at most 0.2 ms, which the thread sleeps; between two looks the event loop turns once.
 */
export function paced<T>(wait: () => Promise<T>): Promise<T> {
  began = performance.now();
  return lending(wait);
}

function lending<T>(call: () => T): T {
  const own = globalThis.setImmediate;
  globalThis.setImmediate = later as typeof setImmediate;
  try {
    return call();
  } finally {
    globalThis.setImmediate = own;
  }
}

/** What Dawn calls for its next look. */
function later(look: (...args: unknown[]) => void, ...args: unknown[]): NodeJS.Immediate {
  return turn(() => {
    const pause = Math.min(longest, (performance.now() - began) / 16);
    if (pause > 0.02) Atomics.wait(never, 0, 0, pause); // the system adds about 0.05
    lending(() => look(...args));
  });
}
