"""The frame of the page: its style sheet and its heading.

It knows nothing of what the page shows.
"""

from __future__ import annotations

from tokenreward.display import html_page, safe_html

_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--paper:#fff;--panel:#f6f8fa;\
--line:#d1d9e0;
--first:#0969da;--second:#c4620a}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;\
--panel:#151b23;--line:#3d444d;
--first:#58a6ff;--second:#f0883e}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:auto;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.25rem;margin-top:2.5rem;border-bottom:1px solid var(--line)}\
h3{font-size:1rem}
p.note,figcaption,small{color:var(--soft)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .7rem;text-align:left;border-bottom:1px solid var(--line);vertical-align:top}
td small{white-space:nowrap}
@media(max-width:600px){th,td{padding:.25rem .4rem;font-size:.9rem}}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));gap:1rem}
figure{margin:0;padding:.7rem;background:var(--panel);border-radius:6px}
svg.plot{width:100%;max-width:480px;height:auto;font:12px system-ui,sans-serif}
svg.track{width:clamp(72px,20vw,160px);height:auto;vertical-align:middle}
svg text{fill:var(--ink)}
.first{fill:var(--first)}.second{fill:var(--second)}
.axis{stroke:var(--line);fill:none}.whisker{stroke:var(--first);stroke-width:2}
.curve{stroke:var(--first);stroke-width:2;fill:none}
details{margin:.6rem 0;padding:.5rem .8rem;background:var(--panel);border-radius:6px}
summary{cursor:pointer;overflow-wrap:anywhere}
.text{margin:.3rem 0 1rem;white-space:pre-wrap;overflow-wrap:anywhere;\
font:15px/1.8 ui-monospace,monospace}
.text b{font-weight:400;color:#000;border-radius:3px;box-shadow:inset 0 0 0 1px #8884}
.text b i{font-style:normal;opacity:.7}
.text u{text-decoration:underline 3px}
"""


def document(title: str, body: str) -> str:
    """A whole HTML document.

    Args:
        title: Text, escaped here.
        body: Markup, put in as it is.
    """
    content = f"<main>\n<h1>{safe_html(title)}</h1>\n{body}\n</main>"
    return html_page(title, content, style=_STYLE)
