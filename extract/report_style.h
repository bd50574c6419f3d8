// The style sheet of a report's page.
#pragma once

#include <string_view>

namespace scion {

// Colours: q0 .. q6 one hue, from the page's to the strongest; d0 .. d6 from orange through the page's to blue, told
// apart by readers who don't see red and green alike. on-...: text upon them, of a contrast of 4.5 at least.
inline constexpr std::string_view kReportStyle = R"css(
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--quiet:#57606a;--line:#d5dae0;--bar:#3577b0;--trunk:#8a94a0;
--own:#1b1f24;--dark:#10151b;--light:#fff;
--q0:#f3f7fb;--q1:#e0ebf5;--q2:#c6daec;--q3:#a3c5e2;--q4:#74a9d3;--q5:#2f6fab;--q6:#134b82;
--d0:#b35806;--d1:#f1a340;--d2:#fee0b6;--d3:#eef0f2;--d4:#cfe3f4;--d5:#7fb3da;--d6:#2166ac}
@media (prefers-color-scheme:dark){:root{--page:#12161b;--ink:#e4e8ec;--quiet:#9ba6b2;--line:#333b45;--bar:#5b9fd6;
--trunk:#7c8793;--own:#f0f3f6;
--q0:#1a222c;--q1:#1e2e40;--q2:#213d5a;--q3:#265079;--q4:#2d68a0;--q5:#67aee6;--q6:#a9d5fb;
--d0:#f39b3d;--d1:#a35c12;--d2:#5e4325;--d3:#262d35;--d4:#23425f;--d5:#2d68a0;--d6:#7fbcee}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1rem;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;overflow-wrap:break-word}
code{overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.15rem;margin:2.2rem 0 .4rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1rem 0 .2rem}
p{margin:.4rem 0;max-width:46rem}
.quiet,footer{color:var(--quiet)}
footer{margin-top:2.5rem;font-size:.85rem}
.label{display:inline-block;border:1px solid var(--quiet);border-radius:3px;padding:0 .4rem;font-size:.85rem}
.plot{overflow-x:auto;margin:.5rem 0}
.plot svg{display:block}
.panels{display:flex;flex-wrap:wrap;gap:0 2rem}
.panels>div{min-width:0;max-width:100%}
svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:var(--ink);
font-variant-numeric:tabular-nums}
svg text.quiet{fill:var(--quiet);font-size:12px}
svg text.strong{font-weight:700}
rect{rx:2px}
.q0{fill:var(--q0)}.q1{fill:var(--q1)}.q2{fill:var(--q2)}.q3{fill:var(--q3)}.q4{fill:var(--q4)}.q5{fill:var(--q5)}
.q6{fill:var(--q6)}
.d0{fill:var(--d0)}.d1{fill:var(--d1)}.d2{fill:var(--d2)}.d3{fill:var(--d3)}.d4{fill:var(--d4)}.d5{fill:var(--d5)}
.d6{fill:var(--d6)}
.none{fill:none;stroke:var(--line)}
.own{fill:none;stroke:var(--own);stroke-width:2}
svg text.on-q4,svg text.on-d1,svg text.on-d5{fill:var(--dark)}
svg text.on-q5,svg text.on-q6,svg text.on-d0,svg text.on-d6{fill:var(--light)}
@media (prefers-color-scheme:dark){svg text.on-q4,svg text.on-d1,svg text.on-d5{fill:var(--light)}
svg text.on-q5,svg text.on-q6,svg text.on-d0,svg text.on-d6{fill:var(--dark)}}
.legend{font-size:.85rem;color:var(--quiet);max-width:none}
.key{white-space:nowrap;margin-left:.5rem}
.key svg{vertical-align:-1px}
.key rect{stroke:var(--line)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{font-weight:600;font-size:.85rem;color:var(--quiet);vertical-align:bottom}
td.n,th.n{text-align:right}
td.n{white-space:nowrap}
td.wide{width:25%;min-width:5rem}
td.fixed{white-space:nowrap}
@media (max-width:30rem){th,td{padding-right:.5rem;font-size:.85rem}th{font-size:.8rem}td.wide{min-width:2.5rem}}
.bar{display:block;margin-top:.3rem}
.bar rect{fill:var(--bar)}
.bar rect.trunk{fill:var(--trunk)}
)css";

}  // namespace scion
