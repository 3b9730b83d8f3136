"""The style sheet of report pages: for wide and narrow screens, light and dark, and paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --soft: #57606a; --page: #ffffff; --panel: #f6f8fa; --rule: #d0d7de;
  --one: #0969da; --two: #bc4c00; --faint: #8cb8ea; --good: #1a7f37; --bad: #cf222e; --unsure: #9a6700; }
ins { text-decoration: none; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b1; --page: #0d1117; --panel: #161b22;
  --rule: #3d444d; --one: #58a6ff; --two: #f0883e; --faint: #2f5a8c; --good: #3fb950; --bad: #f85149;
  --unsure: #d29922; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --page: #fff; --panel: #fff; --rule: #bbb;
  --one: #0969da; --two: #bc4c00; --faint: #8cb8ea; --good: #1a7f37; --bad: #cf222e; --unsure: #9a6700; }
  figure, tr, .answer > div { break-inside: avoid; } h2, h3 { break-after: avoid; }
  ins { text-decoration: underline; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
p { margin: .5rem 0; }
h1 { font-size: 1.35rem; font-weight: 600; line-height: 1.35; margin: .25rem 0 .5rem; padding-left: .75rem;
  border-left: .3rem solid var(--soft); }
.better { border-color: var(--good); } .worse, .failed { border-color: var(--bad); }
.cannot-tell, .stopped { border-color: var(--unsure); } .running { border-color: var(--one); }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; min-width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; } .number { text-align: right; font-variant-numeric: tabular-nums; }
td { min-width: 4.5rem; } th, td:first-child, .number { overflow-wrap: break-word; }
td.number { white-space: nowrap; }
@media (max-width: 50rem) { table { font-size: .8rem; } th, td { padding-right: .5rem; } td { min-width: 4rem; }
  td code { font-size: .75rem; } }
code, pre { font: .85rem/1.45 ui-monospace, monospace; }
pre { margin: .25rem 0; padding: .6rem .75rem; background: var(--panel); border: 1px solid var(--rule);
  border-radius: .3rem; white-space: pre-wrap; unicode-bidi: isolate; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.grid { stroke: var(--rule); stroke-width: .5; } .axis { stroke: var(--soft); stroke-width: 1; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .curve.raw { stroke: var(--faint); stroke-width: 1; }
.curve.one { stroke: var(--one); } .curve.two { stroke: var(--two); stroke-dasharray: 5 3; }
.curve.three { stroke: var(--good); stroke-dasharray: 1 3; stroke-linecap: round; }
.curve.four { stroke: var(--unsure); stroke-dasharray: 8 3 2 3; }
.curve.five { stroke: var(--bad); stroke-dasharray: 10 4; }
.curve.six { stroke: var(--soft); } .dot.three { fill: var(--good); } .dot.four { fill: var(--unsure); }
.dot.five { fill: var(--bad); } .dot.six { fill: var(--soft); }
.dot.one, .dot.raw { fill: var(--one); } .dot.two { fill: var(--two); }
.mark { stroke-width: 1; } .mark.epoch { stroke: var(--soft); stroke-dasharray: 1 3; }
.mark.memory { stroke: var(--bad); stroke-width: 1.5; }
.mark.resumed { stroke: var(--one); stroke-dasharray: 4 2; } .mark.warning { stroke: var(--unsure); stroke-width: 1.5; }
.mark.evaluation { stroke: var(--two); stroke-width: 2; } .mark.checkpoint { stroke: var(--good); stroke-width: 2; }
.bar { fill: var(--one); }
.answer { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14rem), 1fr)); gap: 0 1rem;
  padding-bottom: .75rem; border-bottom: 1px solid var(--rule); margin-bottom: .75rem; }
.answer h3 { margin: .25rem 0; font-size: .85rem; color: var(--soft); }
ins { background: color-mix(in srgb, var(--good) 28%, transparent); }
del { text-decoration: line-through; background: color-mix(in srgb, var(--bad) 25%, transparent); }
summary { cursor: pointer; color: var(--one); }
"""
