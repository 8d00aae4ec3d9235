import { beforeAll, describe, expect, it } from 'vitest';
import { sampleReport } from '../../test/sample-report.js';
import { renderHtml } from './html.js';
import { parseReport } from './report.js';

let page: string;
beforeAll(async () => {
  page = await renderHtml(sampleReport);
});

describe('report.html', () => {
  it('needs nothing from outside', () => {
    const withoutNamespaces = page.replaceAll(/xmlns(:\w+)?="[^"]*"/g, '');
    expect(withoutNamespaces).not.toMatch(/https?:|src=|href="(?!#)|url\((?!#)|@import/);
    expect(page.match(/<script/g)).toHaveLength(1);
    expect(page).toContain('<script type="application/json"');
  });

  it('embeds the report so that it can be read back', () => {
    const json = /<script type="application\/json" id="report">(.*)<\/script>/.exec(page)![1]!;
    expect(parseReport(json, 'report.html')).toEqual(sampleReport);
  });

  it('escapes what users wrote', () => {
    expect(page).toContain('a &lt;b&gt; &amp; &quot;c&quot;');
    expect(page).not.toContain('a <b>');
  });

  it('holds the charts and says what is untuned', () => {
    // Bits per byte, recall, prefill and decode twice each; cache once.
    expect(page.match(/<svg /g)).toHaveLength(9);
    expect(page).toContain('before any tuning');
  });

  it('leaves out what was not measured', async () => {
    const bare = await renderHtml({ ...sampleReport, recall: [], speed: [], crossings: [], backends: [] });
    expect(bare.match(/<svg /g)).toHaveLength(3);
    expect(bare).not.toContain('<h2>Speed</h2>');
  });
});
