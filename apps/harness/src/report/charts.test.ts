import { describe, expect, it } from 'vitest';
import { sampleReport } from '../../test/sample-report.js';
import { byLength, byLevel } from './charts.js';
import { cachePoints, qualityPoints, speedPoints } from './points.js';

const marks = (svg: string, role: string) => svg.split(`aria-roledescription="${role}"`).length - 1;

describe('charts', () => {
  it('draws a point for every value, and its interval, in a panel for every length', async () => {
    const points = qualityPoints(sampleReport, 'bitsPerByte');
    const svg = await byLevel(points, { title: 'bits per byte', scale: 'log', format: '.2f' });
    expect(svg).toMatch(/^<svg /);
    // 4 lengths x (10 converted contenders + softmax once for each of 4 families).
    expect(marks(svg, 'point')).toBe(4 * (10 + 4));
    // As many intervals, and Zamba's rule in each panel.
    expect(marks(svg, 'rule mark')).toBeGreaterThanOrEqual(4 * (10 + 4) + 4);
    for (const title of ['512', '1k', '2k', '4k', 'sliding window', 'Zamba']) expect(svg).toContain(`>${title}<`);
  });

  it('draws a line for every level against the length, with both baselines in every panel', async () => {
    const points = speedPoints(sampleReport, 'decode', 'onnx');
    const svg = await byLength(points, { title: 'tokens a second', scale: 'linear', format: 's' }, 'context');
    expect(marks(svg, 'point')).toBe(4 * (10 + 2 * 4));
    // The y value of a point is in its label.
    const first = points[0]!;
    expect(svg).toContain(`tokens a second: ${Math.round(first.y)}`);
  });

  it('draws values without an interval', async () => {
    const svg = await byLength(cachePoints(sampleReport), { title: 'bytes', scale: 'log', format: 's' }, 'context');
    expect(marks(svg, 'point')).toBe(4 * (10 + 2 * 4));
  });
});
