/** Style of the page: system fonts, both colour schemes. */
export const css = `
:root { color-scheme: light dark; --text: #1d2125; --soft: #5c656e; --line: #d8dde2; --tint: #f4f6f8; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e7eb; --soft: #9aa5b0; --line: #343b43; --tint: #1d2329; --page: #14181c; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.55 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
p { margin: .4rem 0; max-width: 52rem; }
.lead { font-size: 1.05rem; color: var(--soft); }
.note { border-left: 3px solid #e08a2b; padding: .3rem .8rem; background: var(--tint); }
.small, figcaption { font-size: .87rem; color: var(--soft); }
.scroll { overflow-x: auto; }
figure { margin: 1.2rem 0 2rem; }
svg { display: block; }
table { border-collapse: collapse; font-size: .87rem; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
th.number, td.number { text-align: right; }
tr.baseline td { background: var(--tint); }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
ul { padding-left: 1.2rem; max-width: 52rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
`;
