"""The style sheet of the HTML report: system fonts, light and dark mode, wide and narrow screens, print.

--s0 … --s8 are the colors of series, each with a contrast of at least 3:1 to its background. The first seven are those
of the kinds of linears: cool for attention, warm for the MLP.
"""

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#17202c;--soft:#566273;--rule:#dde2e9;--mark:#e6edf8;
--good:#0b6b3a;--good-page:#e3f5ea;--bad:#a11a1a;--bad-page:#fdeaea;--warn:#7a4b00;--warn-page:#fff4dc;
--before:#8794a8;--after:#1c63c7;
--s0:#1c63c7;--s1:#0a8a86;--s2:#4d8a12;--s3:#7a50d0;--s4:#c76a0a;--s5:#c2307c;--s6:#8d3b24;--s7:#857000;--s8:#46556b}
@media screen and (prefers-color-scheme:dark){:root{
--page:#11151b;--card:#1a2028;--ink:#e7ebf1;--soft:#9ca8b8;--rule:#303946;--mark:#26364d;
--good:#7fdca6;--good-page:#12301f;--bad:#ffa3a3;--bad-page:#431a1c;--warn:#f5cc80;--warn-page:#392b0f;--before:#667488;--after:#6da8ff;
--s0:#6da8ff;--s1:#4fd0ca;--s2:#a3d65c;--s3:#b79bff;--s4:#ffac5c;--s5:#ff86bd;--s6:#dfa089;--s7:#e2cf52;--s8:#bccadd}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
main{max-width:1160px;margin:0 auto;padding:36px 20px 28px}
h1{margin:0;font-size:27px;line-height:1.25;letter-spacing:-.01em}h1 span{color:var(--soft);font-weight:400}
h1 strong{display:inline-block}
h2{margin:0 0 4px;font-size:17px}p{margin:0}.soft{color:var(--soft);font-size:13px}
code,pre,.code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
code{display:inline-block;max-width:100%}
.box,.tile{background:var(--card);border:1px solid var(--rule);border-radius:10px}
.box{margin-top:16px;padding:18px 20px}
.verdict,.notes{border-radius:10px;margin-top:16px;padding:14px 20px;border:1px solid;border-left-width:6px}
.verdict{margin-top:22px;font-size:14px}.verdict strong{display:block;font-size:20px}
.good{color:var(--good);background:var(--good-page)}.bad{color:var(--bad);background:var(--bad-page)}
.notes,.warned{color:var(--warn);background:var(--warn-page)}.unknown{color:var(--soft);background:var(--card)}
.verdict p{margin-top:4px}.notes ul,.verdict ul{margin:2px 0 0;padding-left:20px}
.tiles{display:flex;flex-wrap:wrap;gap:16px;margin-top:16px}
.tile{padding:14px 20px 16px;flex:1 1 300px;min-width:0}.wide{flex-grow:2}.full{flex-basis:100%}
.tile h2{font-size:13px;font-weight:500;color:var(--soft)}
.tile .value{font-size:25px;font-weight:650;line-height:1.3;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
.plot{display:block;width:100%;min-width:720px;height:auto;margin-top:10px;font-size:12px}
.plot text{fill:var(--ink)}.plot .name,.plot .end,.plot .mid{fill:var(--soft)}
.mid{text-anchor:middle}.end{text-anchor:end}.plot text{font-variant-numeric:tabular-nums}
.grid{stroke:var(--rule)}.base{stroke:var(--soft)}
.before{fill:var(--before)}.after{fill:var(--after)}
.series{color:var(--s)}.mark{fill:currentColor;stroke:var(--card)}
.mark.kept{fill:var(--card);stroke:currentColor;stroke-width:1.6}
.line{fill:none;stroke:currentColor;stroke-width:1.6;stroke-linejoin:round}
.roof{stroke:var(--soft);stroke-dasharray:5 4}
.plot:has(.series:hover) .series:not(:hover){opacity:.13}
.drawn:has(.s0:hover) .series:not(.s0),.drawn:has(.s1:hover) .series:not(.s1),.drawn:has(.s2:hover) .series:not(.s2),
.drawn:has(.s3:hover) .series:not(.s3),.drawn:has(.s4:hover) .series:not(.s4),.drawn:has(.s5:hover) .series:not(.s5),
.drawn:has(.s6:hover) .series:not(.s6),.drawn:has(.s7:hover) .series:not(.s7),.drawn:has(.s8:hover) .series:not(.s8),
.drawn:has(.together:hover) .series:not(.together){opacity:.13}
.keys{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:12px;font-size:13px}
.key{display:inline-flex;align-items:center}.key .dot{width:26px;height:14px;color:var(--s);flex:none}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:8px 24px}
.small{min-width:0;max-width:620px;font-size:14px}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(250px,1fr));gap:14px 32px;margin-top:12px}
.pairs h3{margin:0 0 2px;font-size:14px}.pair{display:flex;align-items:center;gap:8px;font-size:13px;line-height:1.7}
.pair>span:first-child{width:46px;color:var(--soft)}.track{flex:1}
.pair b{min-width:56px;text-align:right;font-variant-numeric:tabular-nums}
.track i{display:block;height:12px;width:calc(100%*var(--w));border-radius:2px}
.was{background:var(--before)}.is{background:var(--after)}
.s0{--s:var(--s0)}.s1{--s:var(--s1)}.s2{--s:var(--s2)}.s3{--s:var(--s3)}.s4{--s:var(--s4)}.s5{--s:var(--s5)}
.s6{--s:var(--s6)}.s7{--s:var(--s7)}.s8{--s:var(--s8)}
.together{--s:var(--ink)}.together .line{stroke-dasharray:6 4;stroke-width:2}
table{width:100%;border-collapse:collapse;margin-top:10px;font-size:13px;overflow-wrap:normal}
th,td{--pad:5px;padding:var(--pad) 9px;border-bottom:1px solid var(--rule);
text-align:left;vertical-align:top;white-space:nowrap}
thead th{position:sticky;top:0;background:var(--card);color:var(--soft);font-weight:600;white-space:normal;
vertical-align:bottom;box-shadow:inset 0 -1px var(--soft);border:0}
tbody th{font-weight:400}.number{text-align:right;font-variant-numeric:tabular-nums}
.first>*{border-top:2px solid var(--rule)}tbody tr:hover{background:var(--mark)}
.note{display:block;white-space:normal;max-width:300px;color:var(--warn)}.still>*{color:var(--soft)}
.bar{min-width:124px;background:linear-gradient(var(--before),var(--before)) 9px
calc(var(--pad) + .75em - 3.5px)/calc((100% - 76px)*var(--w)) 7px no-repeat}
.tag{display:inline-block;margin-left:8px;padding:0 7px;border:1px solid;border-radius:9px;font:600 11px/16px system-ui,
sans-serif}
pre{margin:8px 0 0;white-space:pre-wrap}summary{cursor:pointer;font-weight:650;font-size:17px}
footer{margin-top:20px;color:var(--soft);font-size:13px}
.table{overflow:auto}
@media screen and (min-width:1241px){.table{max-height:88vh}}
.dot{width:10px;height:10px;min-width:0;display:inline;margin-right:6px}
@media (max-width:700px){main{padding:20px 10px}.box,.tile,.verdict,.notes{padding:14px 12px}
h1{font-size:22px}.plot,.plot .name{font-size:17px}.small,.small .name{font-size:19px}}
@media print{:root{color-scheme:light;--page:#fff}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
main{max-width:none;padding:0}
thead th{position:static}tr,.tile,.figure,.verdict,.notes li{break-inside:avoid}h2{break-after:avoid}
.scroll,.table{overflow:visible;max-height:none}.plot{min-width:0}table{font-size:10px}th,td{--pad:2px;padding:2px 5px}
details::details-content{content-visibility:visible;display:block}}
"""
