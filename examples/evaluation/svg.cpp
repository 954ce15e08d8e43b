#include "svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace evaluation {
namespace {

/// Outlines around the origin, about eleven units wide and of about the same area.
constexpr const char* Markers[Svg::MarkerShapes] = {
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.5-4.5h9v9h-9z",
    "M0-6.4 6.4 0 0 6.4-6.4 0z",
    "M0-6 6 4.6H-6z",
    "M0 6 6-4.6H-6z",
    "M-6-2h4v-4h4v4h4v4h-4v4h-4v-4h-4z",
    "M0-6.2 5.9-1.9 3.6 5H-3.6L-5.9-1.9z",
};

}  // namespace

std::string escaped(std::string_view text) {
  std::string result;
  for (const char character : text) switch (character) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += character;
    }
  return result;
}

double Scale::at(double number) const {
  const double clamped = std::clamp(number, low, high);
  const double share = logarithmic ? std::log(clamped / low) / std::log(high / low) : (clamped - low) / (high - low);
  return from + share * (to - from);
}

std::vector<double> round_numbers(double low, double high, std::size_t most) {
  double step = std::pow(10, std::floor(std::log10((high - low) / static_cast<double>(most))));
  for (const double times : {2.0, 2.5, 2.0})  // 1, 2, 5, 10 times a power of ten
    if (std::floor(high / step) - std::ceil(low / step) + 1 > static_cast<double>(most)) step *= times;
  std::vector<double> numbers;
  for (double i = std::ceil(low / step); i * step <= high * (1 + 1e-12); ++i) numbers.push_back(i * step);
  return numbers;
}

std::string brief(double number) {
  return fmt::format("{:.4g}", number);
}

Svg::Svg(double width, double height, std::string_view description)
    : head_(fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" role=\"img\" "
                        "aria-label=\"{2}\">\n",
                        width, height, escaped(description))) {}

void Svg::line(double x1, double y1, double x2, double y2, std::string_view kind) {
  body_ += fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" class=\"{}\"/>\n", x1, y1, x2, y2,
                       kind);
}

void Svg::polyline(const std::vector<std::pair<double, double>>& points, std::string_view kind) {
  body_ += "<polyline points=\"";
  for (const auto& [x, y] : points) body_ += fmt::format("{:.1f},{:.1f} ", x, y);
  body_ += fmt::format("\" class=\"{}\"/>\n", kind);
}

void Svg::text(double x, double y, std::string_view anchor, std::string_view kind, std::string_view words) {
  body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" class=\"{}\">{}</text>\n", x, y, anchor,
                       kind, escaped(words));
}

void Svg::upright_text(double x, double y, std::string_view kind, std::string_view words) {
  body_ += fmt::format(
      "<text transform=\"translate({:.1f} {:.1f}) rotate(-90)\" text-anchor=\"middle\" class=\"{}\">{}"
      "</text>\n",
      x, y, kind, escaped(words));
}

void Svg::marker(double x, double y, std::size_t shape, std::string_view kind, std::string_view hint) {
  body_ += fmt::format("<path d=\"{}\" transform=\"translate({:.1f} {:.1f})\" class=\"marker {}\">",
                       Markers[shape % MarkerShapes], x, y, kind);
  if (!hint.empty()) body_ += fmt::format("<title>{}</title>", escaped(hint));
  body_ += "</path>\n";
}

std::string Svg::finish(std::string_view style) const {
  const std::string css = style.empty() ? "" : fmt::format("<style>\n{}</style>\n", style);
  return head_ + css + body_ + "</svg>\n";
}

std::string plot_style() {
  return R"(:root{--paper:#fff;--ink:#1c2128;--soft:#57606a;--grid:#e4e7eb;--edge:#c4cad1;--full:#57606a;
  --evict:#c2410c;--quantize:#1d6fd8;--both:#0f8a5f;--other:#8b45c9;--low:#f4d9d0;--high:#9fd8bd}
@media (prefers-color-scheme:dark){:root{--paper:#0d1117;--ink:#e6edf3;--soft:#9aa4af;--grid:#21272f;--edge:#444c56;
  --full:#9aa4af;--evict:#f0883e;--quantize:#58a6ff;--both:#3fb98c;--other:#bc8cff;--low:#4a2a20;--high:#1d6b4a}}
svg{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;font-size:12px}
.paper{fill:var(--paper)}.ink{fill:var(--ink)}.soft{fill:var(--soft)}.title{fill:var(--ink);font-size:15px;
  font-weight:600}
.label{font-size:11.5px;paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
.grid{stroke:var(--grid)}.axis{stroke:var(--edge)}.leader{stroke:var(--soft);stroke-width:.7}
.front{fill:none;stroke:var(--soft);stroke-width:1.4;stroke-dasharray:5 4}
.series{fill:none;stroke-width:1;opacity:.45}.error{stroke-width:1.2;opacity:.6}
.marker{stroke:var(--paper);stroke-width:1}
.full{fill:var(--full)}.evict{fill:var(--evict)}.quantize{fill:var(--quantize)}.both{fill:var(--both)}
.other{fill:var(--other)}
.line-full{stroke:var(--full)}.line-evict{stroke:var(--evict)}.line-quantize{stroke:var(--quantize)}
.line-both{stroke:var(--both)}.line-other{stroke:var(--other)}
)";
}

}  // namespace evaluation
