#include "quality_plot.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "svg.hpp"

namespace evaluation {
namespace {

struct Box {
  double left, top, right, bottom;

  bool overlaps(const Box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
  bool inside(const Box& outer) const {
    return left >= outer.left && right <= outer.right && top >= outer.top && bottom <= outer.bottom;
  }
};

/// Where a label may stand beside its point: as near as the others allow.
struct Place {
  double dx, dy;
  const char* anchor;
};
constexpr Place Places[] = {
    {9, 4, "start"},   {-9, 4, "end"},     {0, -10, "middle"}, {0, 19, "middle"},  {8, -7, "start"},
    {8, 15, "start"},  {-8, -7, "end"},    {-8, 15, "end"},    {14, -18, "start"}, {14, 26, "start"},
    {-14, -18, "end"}, {-14, 26, "end"},   {20, -32, "start"}, {20, 40, "start"},  {-20, -32, "end"},
    {-20, 40, "end"},  {26, -46, "start"}, {26, 54, "start"},  {-26, -46, "end"},  {-26, 54, "end"},
};

constexpr double LeastDivergence = 0.001;  // nats; what is below is drawn there
constexpr double MostExcess = 30;          // percent; what is above is drawn there

std::optional<Mean> quality_of(const Result& result, Quality quality) {
  return quality == Quality::divergence ? result.kl : result.perplexity_ratio;
}

std::string label_of(const Result& result) {
  return result.keep == 1 ? result.policy : fmt::format("{} at {}", result.policy, brief(result.keep));
}

std::string hint_of(const Result& result) {
  const auto error = [](const Mean& mean, int digits) {
    return mean.error ? fmt::format(" ± {:.{}f}", *mean.error, digits) : "";
  };
  std::string hint = fmt::format("{}\n{:.0f} KiB, {:.2f} times smaller than fp16", label_of(result),
                                 result.bytes.value / 1024, result.ratio());
  if (result.perplexity_ratio)
    hint += fmt::format("\nperplexity {:.3f}{} times the full cache's", result.perplexity_ratio->value,
                        error(*result.perplexity_ratio, 3));
  if (result.kl) hint += fmt::format("\nKL {:.4f}{} nats", result.kl->value, error(*result.kl, 4));
  if (result.asked != 0) hint += fmt::format("\n{} of {} passkeys", result.found, result.asked);
  return hint;
}

/// The plot while it is drawn.
class QualityPlot {
 public:
  QualityPlot(const PromptResults& length, const Protocol& protocol, const PlotOptions& options)
      : length_(length), protocol_(protocol), options_(options), svg_(width(), height(), description()) {
    for (std::size_t i = 0; i < length.results.size(); ++i)
      if (quality_of(length.results[i], options.quality)) shown_.push_back(i);
    front_ = pareto_front(length.results, options.quality);
    set_scales();
  }

  std::string draw() {
    if (options_.standalone) draw_title();
    draw_axes();
    svg_.polyline(front_corners(), "front");
    draw_series();
    for (const std::size_t i : shown_) draw_point(i);
    draw_labels();
    draw_legend();
    return svg_.finish(options_.standalone ? plot_style() : "");
  }

 private:
  double width() const { return options_.narrow ? 380 : 860; }
  double height() const { return bottom() + 62 + 22 * static_cast<double>(legend_rows()); }
  double left() const { return options_.narrow ? 66 : 78; }
  double right() const { return width() - 16; }
  double top() const { return options_.standalone ? 66 : 14; }
  double bottom() const { return top() + (options_.narrow ? 300 : 390); }

  std::size_t legend_rows() const { return options_.narrow ? 3 : 1; }
  bool divergence() const { return options_.quality == Quality::divergence; }
  std::string description() const {
    return fmt::format("{} of compressed caches against how much smaller they are than fp16, prompts of {} tokens",
                       divergence() ? "KL divergence" : "Perplexity", length_.prompt);
  }

  void set_scales() {
    double most_ratio = 4, least_ratio = 1, most = 0, least = 0;
    for (const std::size_t i : shown_) {
      const Result& result = length_.results[i];
      const Mean quality = *quality_of(result, options_.quality);
      most_ratio = std::max(most_ratio, result.ratio());
      least_ratio = std::min(least_ratio, result.ratio());
      most = std::max(most, divergence() ? quality.value : excess(quality.value));
      least = std::min(least, divergence() ? 0 : excess(quality.value - quality.error.value_or(0)));
    }
    x_ = {least_ratio * 0.9, most_ratio * 1.35, left(), right(), true};
    y_ = divergence()
             ? Scale{LeastDivergence, std::max(0.1, most * 1.5), bottom(), top(), true}
             : Scale{std::max(-10.0, std::floor(least) - 1), std::clamp(most * 1.1, 5.0, MostExcess), bottom(), top()};
  }

  static double excess(double ratio) { return (ratio - 1) * 100; }
  double y_of(double quality) const { return y_.at(divergence() ? quality : excess(quality)); }
  std::pair<double, double> point(std::size_t i) const {
    const Result& result = length_.results[i];
    return {x_.at(result.ratio()), y_of(quality_of(result, options_.quality)->value)};
  }

  void draw_title() {
    svg_.add(fmt::format("<rect width=\"{:.0f}\" height=\"{:.0f}\" rx=\"6\" class=\"paper\"/>\n", width(), height()));
    svg_.text(16, 27, "start", "title",
              divergence() ? "How far predictions move as the cache shrinks" : "Perplexity as the cache shrinks");
    svg_.text(16, 47, "start", "soft",
              fmt::format("{}, prompts of {} tokens, {} windows of {} tokens decoded over the compressed cache",
                          model_name(protocol_), length_.prompt, protocol_.windows.count, protocol_.windows.decode));
  }

  void draw_axes() {
    std::vector<double> levels;
    if (divergence())
      for (double power = LeastDivergence; power <= y_.high; power *= 10)
        for (const double times : {1.0, 2.0, 5.0}) levels.push_back(power * times);
    else
      levels = round_numbers(y_.low, y_.high, 8);
    for (const double level : levels) {
      if (level > y_.high) continue;
      svg_.line(left(), y_.at(level), right(), y_.at(level), "grid");
      const bool least = divergence() && level == LeastDivergence;
      const std::string words = divergence() ? (least ? "≤ " : "") + brief(level) : fmt::format("{:+g} %", level);
      svg_.text(left() - 7, y_.at(level) + 4, "end", "soft", !divergence() && level == 0 ? "0 %" : words);
    }
    for (double ratio = 0.5; ratio <= x_.high; ratio *= 2) {
      if (ratio < x_.low) continue;
      svg_.line(x_.at(ratio), top(), x_.at(ratio), bottom(), "grid");
      svg_.text(x_.at(ratio), bottom() + 17, "middle", "soft", fmt::format("{} x", brief(ratio)));
    }
    svg_.line(left(), bottom(), right(), bottom(), "axis");
    svg_.text((left() + right()) / 2, bottom() + 36, "middle", "ink",
              options_.narrow ? "times smaller than fp16" : "times smaller than fp16, all bytes counted");
    svg_.upright_text(options_.narrow ? 12 : 20, (top() + bottom()) / 2, "ink",
                      divergence() ? "KL(full || compressed), nats" : "perplexity above the full cache's");
  }

  /// The corners of the front's steps: nothing lies between two of its points.
  std::vector<std::pair<double, double>> front_corners() const {
    std::vector<std::pair<double, double>> corners;
    for (const std::size_t i : front_) {
      const auto [x, y] = point(i);
      if (!corners.empty()) corners.emplace_back(x, corners.back().second);
      corners.emplace_back(x, y);
    }
    return corners;
  }

  void draw_series() {
    for (std::size_t a = 0; a < shown_.size(); ++a) {
      const Result& first = length_.results[shown_[a]];
      const auto same = [&](std::size_t i) { return length_.results[i].policy == first.policy; };
      if (std::any_of(shown_.begin(), shown_.begin() + static_cast<std::ptrdiff_t>(a), same)) continue;
      std::vector<std::pair<double, double>> points;
      for (const std::size_t i : shown_)
        if (same(i)) points.push_back(point(i));
      std::ranges::sort(points);
      if (points.size() > 1) svg_.polyline(points, fmt::format("series line-{}", name_of(kind_of(first))));
    }
  }

  void draw_point(std::size_t i) {
    const Result& result = length_.results[i];
    const Mean quality = *quality_of(result, options_.quality);
    const auto [x, y] = point(i);
    const char* kind = name_of(kind_of(result));
    if (quality.error)
      svg_.line(x, y_of(quality.value - *quality.error), x, y_of(quality.value + *quality.error),
                fmt::format("error line-{}", kind));
    svg_.marker(x, y, shape_of(length_.results, i), kind, hint_of(result));
  }

  /// The front's points first: they may not go without. Of other policies the smallest cache's point stands for all.
  void draw_labels() {
    std::vector<Box> taken, lines;
    for (const std::size_t i : shown_) {
      const auto [x, y] = point(i);
      taken.push_back({x - 6, y - 6, x + 6, y + 6});
    }
    const auto corners = front_corners();
    for (std::size_t i = 1; i < corners.size(); ++i) {
      const auto [left, right] = std::minmax(corners[i - 1].first, corners[i].first);
      const auto [top, bottom] = std::minmax(corners[i - 1].second, corners[i].second);
      lines.push_back({left - 1, top - 1, right + 1, bottom + 1});
    }
    std::vector<std::size_t> order = front_;
    for (const std::size_t i : shown_)
      if (!options_.narrow && std::ranges::count(front_, i) == 0 && is_smallest(i)) order.push_back(i);
    for (const std::size_t i : order)
      if (!draw_label(i, taken, lines)) draw_label(i, taken, {});
  }

  bool is_smallest(std::size_t i) const {
    return std::ranges::none_of(shown_, [&](std::size_t other) {
      const Result &one = length_.results[i], &two = length_.results[other];
      return two.policy == one.policy && two.bytes.value < one.bytes.value;
    });
  }

  /// At the first place that is free of `taken` and `lines`; false if there is none.
  bool draw_label(std::size_t i, std::vector<Box>& taken, const std::vector<Box>& lines) {
    const Result& result = length_.results[i];
    std::string words = label_of(result);
    if (!divergence() && excess(result.perplexity_ratio->value) > y_.high)
      words += fmt::format(": {:+.0f} %", excess(result.perplexity_ratio->value));
    const auto [x, y] = point(i);
    const double wide = 6.1 * static_cast<double>(words.size());
    const Box room{left() + 2, top() - 6, right() + 12, bottom() - 2};
    for (const Place& place : Places) {
      const double anchor_x = x + place.dx, base = y + place.dy;
      const double before = place.anchor[0] == 's' ? 0 : place.anchor[0] == 'e' ? wide : wide / 2;
      const Box box{anchor_x - before - 1, base - 10, anchor_x - before + wide + 1, base + 3};
      const auto meets = [&](const Box& other) { return box.overlaps(other); };
      if (!box.inside(room) || std::ranges::any_of(taken, meets) || std::ranges::any_of(lines, meets)) continue;
      if (std::abs(place.dx) > 9) svg_.line(x, y, anchor_x, base - (place.dy < 0 ? -1 : 8), "leader");
      svg_.text(anchor_x, base, place.anchor, fmt::format("label {}", name_of(kind_of(result))), words);
      taken.push_back(box);
      return true;
    }
    return false;
  }

  void draw_legend() {
    double x = left(), y = bottom() + 62;
    for (const Kind kind : {Kind::full, Kind::evict, Kind::quantize, Kind::both, Kind::other}) {
      if (std::ranges::none_of(shown_, [&](std::size_t i) { return kind_of(length_.results[i]) == kind; })) continue;
      const double wide = 34 + 6.2 * static_cast<double>(std::string_view(words_of(kind)).size());
      if (x + wide > width()) {
        x = left();
        y += 22;
      }
      svg_.marker(x + 6, y - 4, 0, name_of(kind), "");
      svg_.text(x + 17, y, "start", "ink", words_of(kind));
      x += wide;
    }
    if (x + 120 > width()) {
      x = left();
      y += 22;
    }
    svg_.polyline({{x, y - 4}, {x + 22, y - 4}}, "front");
    svg_.text(x + 28, y, "start", "ink", "Pareto front");
  }

  const PromptResults& length_;
  const Protocol& protocol_;
  PlotOptions options_;
  Svg svg_;
  std::vector<std::size_t> shown_, front_;
  Scale x_, y_;
};

}  // namespace

Kind kind_of(const Result& result) {
  const bool evicts = result.kept_fraction.value < 0.999;
  const bool quantizes = result.parts.codes > 0;
  if (evicts) return quantizes ? Kind::both : Kind::evict;
  if (quantizes) return Kind::quantize;
  return result.ratio() > 1.02 ? Kind::other : Kind::full;
}

const char* name_of(Kind kind) {
  constexpr const char* Names[] = {"full", "evict", "quantize", "both", "other"};
  return Names[static_cast<std::size_t>(kind)];
}

const char* words_of(Kind kind) {
  constexpr const char* Words[] = {"everything", "fewer tokens", "fewer bits", "fewer tokens and bits",
                                   "shared layers"};
  return Words[static_cast<std::size_t>(kind)];
}

std::string quality_plot(const PromptResults& length, const Protocol& protocol, const PlotOptions& options) {
  return QualityPlot(length, protocol, options).draw();
}

std::vector<std::size_t> pareto_front(const std::vector<Result>& results, Quality quality) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < results.size(); ++i)
    if (quality_of(results[i], quality)) order.push_back(i);
  // From the smallest cache on, each that is better than all smaller ones.
  std::ranges::stable_sort(order, {}, [&](std::size_t i) {
    return std::pair(results[i].bytes.value, quality_of(results[i], quality)->value);
  });
  std::vector<std::size_t> front;
  for (const std::size_t i : order)
    if (front.empty() || quality_of(results[i], quality)->value < quality_of(results[front.back()], quality)->value)
      front.push_back(i);
  std::ranges::reverse(front);
  return front;
}

std::size_t shape_of(const std::vector<Result>& results, std::size_t index) {
  std::vector<std::string> before;
  for (const Result& result : results) {
    if (kind_of(result) != kind_of(results[index])) continue;
    if (result.policy == results[index].policy) break;
    if (std::ranges::count(before, result.policy) == 0) before.push_back(result.policy);
  }
  return before.size();
}

}  // namespace evaluation
