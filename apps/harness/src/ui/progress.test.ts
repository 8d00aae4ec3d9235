import { PassThrough } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { openProgress, type Progress } from './progress.js';

function errOf(
  options: { terminal: boolean; env?: Record<string, string>; quiet?: boolean },
  work: (progress: Progress) => void,
) {
  const chunks: string[] = [];
  const err = Object.assign(new PassThrough(), { isTTY: options.terminal, columns: 80 });
  err.on('data', (chunk: Buffer) => chunks.push(String(chunk)));
  using progress = openProgress({ err, env: options.env ?? {} }, options.quiet === true);
  work(progress);
  return chunks.join('');
}

function twoStages(progress: Progress) {
  progress.stage('load', 2);
  progress.step('a');
  progress.step('b');
  progress.stage('speed', 1);
  progress.step('c');
  progress.end();
  progress.note('Done.');
}

describe('progress', () => {
  const lines = /^load: 2 steps\nload: done in [\d.]+ s\nspeed: 1 step\nspeed: done in [\d.]+ s\nDone\.\n$/;

  it('is a line a stage where nobody watches, and in CI', () => {
    expect(errOf({ terminal: false }, twoStages)).toMatch(lines);
    expect(errOf({ terminal: true, env: { CI: 'true' } }, twoStages)).toMatch(lines);
  });

  it('is a bar on a terminal, which is cleared', () => {
    const text = errOf({ terminal: true }, twoStages);
    expect(text).toContain('0/2');
    expect(text).toContain('█');
    expect(text).not.toContain('done in');
    expect(text).toMatch(/Done\.\n$/);
  });

  it('counts from when the work began, where that was before anything was known of it', () => {
    const late = (progress: Progress) => {
      progress.stage('bpb', 2, performance.now() - 5000);
      progress.end();
    };
    expect(errOf({ terminal: false }, late)).toMatch(/^bpb: 2 steps\nbpb: done in 5\.\d s\n$/);
  });

  it('does not call a stage done that was left', () => {
    expect(errOf({ terminal: false }, (progress) => progress.stage('load', 2))).toBe('load: 2 steps\n');
  });

  it('is silent when quiet', () => {
    expect(errOf({ terminal: true, quiet: true }, twoStages)).toBe('');
  });
});
