import { performance } from 'node:perf_hooks';
import cliProgress from 'cli-progress';
import type { Io } from './io.js';
import { formatSeconds } from './units.js';

/** Tells people how far the work is, on stderr; never called inside a measured region. */
export interface Progress extends Disposable {
  /** A stretch of work of `total` steps; ends the one before. `since`: when it began, on the clock of performance.now(). */
  stage(label: string, total: number, since?: number): void;
  step(detail: string): void;
  /** Steps done so far. */
  to(done: number): void;
  /** A line that stays. */
  note(text: string): void;
  /** The current stage is done. Disposing instead says nothing and clears the bar. */
  end(): void;
}

type Terminal = Pick<Io, 'err' | 'env'>;

/** Bars on a terminal, a line a stage elsewhere and under CI, nothing with `quiet`. */
export function openProgress(io: Terminal, quiet: boolean): Progress {
  if (quiet) return { stage() {}, step() {}, to() {}, note() {}, end() {}, [Symbol.dispose]() {} };
  return io.err.isTTY && !io.env.CI ? bars(io) : lines(io);
}

function bars(io: Terminal): Progress {
  let bar: cliProgress.SingleBar | undefined;
  const end = () => {
    bar?.stop();
    bar = undefined;
  };
  return {
    stage(label, total) {
      end();
      bar = new cliProgress.SingleBar({
        format: `${label.padEnd(10)} {bar} {value}/{total} {detail}`,
        stream: io.err,
        barsize: 24,
        hideCursor: true,
        clearOnComplete: true,
        // A redraw takes microseconds; seldom enough not to show up in a measurement.
        fps: 2,
        gracefulExit: false,
        barCompleteChar: '█',
        barIncompleteChar: '░',
      });
      bar.start(total, 0, { detail: '' });
    },
    step: (detail) => bar?.increment(1, { detail }),
    to: (done) => bar?.update(done),
    note(text) {
      end();
      io.err.write(`${text}\n`);
    },
    end,
    [Symbol.dispose]: end,
  };
}

function lines(io: Terminal): Progress {
  let current: { readonly label: string; readonly started: number } | undefined;
  const end = () => {
    if (current) {
      io.err.write(`${current.label}: done in ${formatSeconds((performance.now() - current.started) / 1000)}\n`);
    }
    current = undefined;
  };
  return {
    stage(label, total, since = performance.now()) {
      end();
      current = { label, started: since };
      io.err.write(`${label}: ${total} ${total === 1 ? 'step' : 'steps'}\n`);
    },
    step() {},
    to() {},
    note: (text) => void io.err.write(`${text}\n`),
    end,
    [Symbol.dispose]() {},
  };
}
