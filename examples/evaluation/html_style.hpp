#pragma once

namespace evaluation {

/// What the page looks like, after plot_style(), whose colours it uses.
inline constexpr const char* PageStyle = R"(*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 6px}h2{font-size:20px;margin:44px 0 6px;padding-top:14px;
  border-top:1px solid var(--grid)}h3{font-size:15px;margin:22px 0 6px}
p{margin:6px 0 12px;max-width:84ch}.lead{color:var(--soft)}a{color:var(--quantize)}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;margin:14px 0 0;font-size:14px}
figure{margin:14px 0;max-width:1000px}figure svg{display:block;width:100%;height:auto}figcaption{color:var(--soft);
  font-size:13.5px;max-width:80ch}
.narrow{display:none}
.scroll{overflow-x:auto;margin:12px 0}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:5px 6px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th{color:var(--soft);font-weight:500;vertical-align:bottom;border-bottom-color:var(--edge)}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);z-index:1}
th.left{text-align:left}th.heat{text-align:center}td.wide{width:45%;min-width:180px}
td small,th small{color:var(--soft);font-size:12px;font-weight:400}
tr.best td:first-child::after{content:" ●";color:var(--both);font-size:10px;vertical-align:2px}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:7px}
.dot.full{background:var(--full)}.dot.evict{background:var(--evict)}.dot.quantize{background:var(--quantize)}
.dot.both{background:var(--both)}.dot.other{background:var(--other)}
td.heat{text-align:center;border:2px solid var(--paper);
  background:color-mix(in srgb,var(--high) var(--share),var(--low))}
.stack,.bar{display:flex;height:15px;border-radius:3px;overflow:hidden;background:var(--grid)}
.stack i,.bar i{display:block;height:100%}
.bar i{background:var(--quantize)}
.p0{background:#8a96a3}.p1{background:#2b6ca3}.p2{background:#7ab0d4}.p3{background:#d8a23a}.p4{background:#c6493c}
.key{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13.5px;margin:8px 0;color:var(--soft)}
.key span{display:inline-flex;align-items:center;gap:6px}.key i{width:12px;height:12px;border-radius:3px;
  display:inline-block}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(280px,1fr));gap:18px;align-items:end}
.gallery figure{margin:0}.gallery figcaption{color:var(--ink);font-size:13.5px;margin-bottom:2px}
.gallery image{image-rendering:pixelated}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;font-size:14px}dt{color:var(--soft)}dd{margin:0;
  overflow-wrap:anywhere}
pre{background:var(--grid);padding:12px 14px;border-radius:6px;overflow-x:auto;font-size:12.5px;line-height:1.45}
@media (max-width:640px){main{padding:18px 14px 40px}h1{font-size:21px}.wide{display:none}.narrow{display:block}
td.wide{display:table-cell;min-width:130px}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}
th,td{padding:5px 7px}
th:first-child,td:first-child{min-width:140px;max-width:160px;white-space:normal;overflow-wrap:break-word}}
)";

}  // namespace evaluation
