#pragma once
#include <algorithm>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/error.hpp"
#include "kvc/policy/fingerprint.hpp"
#include "kvc/shape.hpp"

namespace kvc::inline KVC_ABI {

/// How many slots a head may hold: a number of tokens, a fraction of what was seen, a pyramid over the layers, or a
/// table.
class Budget {
 public:
  /// The same number of slots for every head; implicit, so that `.budget = 1024` works. A floating-point number does
  /// not convert: fraction() says what is meant. Nor does a bool.
  template <std::integral Integer>
  requires(!std::same_as<Integer, bool>) constexpr Budget(Integer tokens)
      : tokens_(static_cast<std::size_t>(tokens)) {  // NOLINT
    if constexpr (std::signed_integral<Integer>)
      if (tokens < 0) fail(ErrorCode::invalid_argument, {"Budget: tokens must not be negative, got ", tokens});
  }

  /// max(1, int(seen * kept)) slots, `kept` in (0, 1]. kvpress computes int(seen * (1 - ratio)): the same for 0.75,
  /// 0.5, 0.25 and 0.125, but 0.1 of 1000 is 100 here and 99 there, because its 1 - 0.9 is a little less than 0.1.
  static Budget fraction(double kept) {
    if (!(kept > 0 && kept <= 1))
      fail(ErrorCode::invalid_argument, {"Budget: the fraction kept must lie in (0, 1], got ", number(kept)});
    Budget budget(0);
    budget.kind_ = Kind::fraction;
    budget.fraction_ = kept;
    return budget;
  }

  /// PyramidKV (Cai et al., arXiv 2406.02069): the lowest layer holds most and the budgets fall linearly, with the
  /// average `mean`; `window` slots are every layer's own. With c = mean - window the layers get from max = 2c - min
  /// down to min = c / beta beyond their window (max is cut to the seen - window there are, min grows by as much). A
  /// prompt with seen < 2c gets the mean in every layer. Layers are rounded one by one: the authors' truncated step
  /// lets the average exceed `mean` by up to half the number of layers. If `mean` is a fraction, this is kvpress's form
  /// instead: c = seen * kept is not reduced by the window, which is part of every layer's budget, and where min would
  /// be below the window every layer gets round(seen * kept).
  static Budget pyramid(const Budget& mean, std::size_t window, double beta = 20) {
    if (mean.is_table() || mean.is_pyramid())
      fail(ErrorCode::invalid_argument,
           {"Budget: the mean of a pyramid must be tokens or a fraction, got ", mean.to_string()});
    if (!(beta >= 1))
      fail(ErrorCode::invalid_argument, {"Budget: beta of a pyramid must be at least 1, got ", number(beta)});
    if (mean.kind_ == Kind::tokens && mean.tokens_ < window)
      fail(ErrorCode::impossible_budget,
           {"Budget: the mean of a pyramid (", mean.to_string(), ") must not be below its window (", window, ")"});
    Budget budget(mean);
    budget.beta_ = beta;
    budget.window_ = window;
    return budget;
  }

  /// One number of slots per head, layer-major: [layers * kv_heads].
  static Budget table(std::shared_ptr<const std::vector<std::size_t>> per_head) {
    if (!per_head || per_head->empty()) fail(ErrorCode::invalid_argument, "Budget: the table is empty");
    Budget budget(0);
    budget.kind_ = Kind::table;
    budget.table_ = std::move(per_head);
    return budget;
  }

  /// Slots that head `id` may hold once `seen` tokens were appended to it.
  std::size_t at(HeadId id, std::size_t seen, const CacheShape& shape) const {
    if (id.layer >= shape.layers || id.head >= shape.kv_heads)
      fail(ErrorCode::invalid_argument, {"Budget: no head ", id.head, " in layer ", id.layer, " of ", shape.layers,
                                         " layers with ", shape.kv_heads, " KV heads"});
    if (kind_ == Kind::table) {
      check_table(shape);
      return (*table_)[id.layer * shape.kv_heads + id.head];
    }
    if (beta_ > 0)
      return kind_ == Kind::tokens ? step(id.layer, seen, shape.layers)
                                   : step_of_fraction(id.layer, seen, shape.layers);
    if (kind_ == Kind::tokens) return tokens_;
    return std::max<std::size_t>(1, static_cast<std::size_t>(double(seen) * fraction_));
  }

  /// Throws impossible_budget unless every head may hold at least `least` slots, which `what` names ("SnapKV: window +
  /// 1"). A fraction cannot be checked before the tokens come; policies then keep what they protect, even beyond the
  /// budget.
  void require(std::size_t least, std::string_view what, const CacheShape& shape) const {
    if (kind_ == Kind::table) check_table(shape);
    if (kind_ == Kind::fraction) return;
    constexpr auto Endless = static_cast<std::size_t>(std::numeric_limits<Position>::max());
    for (std::size_t i = 0; i < shape.heads(); ++i) {
      const HeadId id{static_cast<std::uint32_t>(i / shape.kv_heads), static_cast<std::uint32_t>(i % shape.kv_heads)};
      const std::size_t slots = at(id, Endless, shape);
      if (slots < least)
        fail(ErrorCode::impossible_budget, {what, " (", least, ") must not exceed the budget (", slots, ")"});
    }
  }

  /// Whether the budget depends on how many tokens were seen.
  bool is_fraction() const { return kind_ == Kind::fraction; }
  bool is_pyramid() const { return beta_ > 0; }
  bool is_table() const { return kind_ == Kind::table; }
  /// Of a pyramid: what pyramid() was given.
  Budget mean() const {
    Budget plain(*this);
    plain.beta_ = 0;
    plain.window_ = 0;
    return plain;
  }
  double beta() const { return beta_; }

  void add_to(Fingerprint& all) const {
    all.add(static_cast<unsigned>(kind_));
    all.add(tokens_);
    all.add(window_);
    all.add(fraction_);
    all.add(beta_);
    all.add(table_);
  }

  friend bool operator==(const Budget& a, const Budget& b) {
    const bool same_table = a.table_ == b.table_ || (a.table_ && b.table_ && *a.table_ == *b.table_);
    return same_table && a.kind_ == b.kind_ && a.tokens_ == b.tokens_ && a.window_ == b.window_ &&
           a.fraction_ == b.fraction_ && a.beta_ == b.beta_;
  }

  /// "1024", "0.25", "pyramid(1024, window 32, beta 20)" or "table(60 heads)".
  std::string to_string() const {
    if (kind_ == Kind::table) return joined({"table(", table_->size(), " heads)"});
    if (beta_ > 0) return joined({"pyramid(", mean().to_string(), ", window ", window_, ", beta ", number(beta_), ")"});
    if (kind_ == Kind::tokens) return joined({tokens_});
    const std::string text = number(fraction_);
    return text.find('.') == std::string::npos ? joined({text, ".0"}) : text;  // "1" would read as one token
  }

 private:
  enum class Kind { tokens, fraction, table };

  static std::string number(double value) {
    char text[400];
    const auto end = std::to_chars(text, text + sizeof(text), value, std::chars_format::fixed);
    return std::string(text, end.ptr);
  }
  void check_table(const CacheShape& shape) const {
    if (table_->size() != shape.heads())
      fail(ErrorCode::shape_mismatch,
           {"Budget: the table has ", table_->size(), " entries, but the cache has ", shape.heads(), " heads"});
  }
  /// Linear from `top` in layer 0 to `bottom` in the last one.
  static std::size_t slope(double top, double bottom, std::size_t layer, std::size_t layers) {
    const double share = layers > 1 ? double(layer) / double(layers - 1) : 0.5;
    return static_cast<std::size_t>(std::nearbyint(top - share * (top - bottom)));
  }
  std::size_t step(std::size_t layer, std::size_t seen, std::size_t layers) const {
    const double spare = double(tokens_ - window_), available = double(seen) - double(window_);
    if (double(seen) < 2 * spare || seen <= tokens_) return tokens_;
    double bottom = std::floor(spare / beta_), top = 2 * spare - bottom;
    if (top > available) {
      top = available;
      bottom = 2 * spare - top;
    }
    return window_ + slope(top, bottom, layer, layers);
  }
  std::size_t step_of_fraction(std::size_t layer, std::size_t seen, std::size_t layers) const {
    const double spare = double(seen) * fraction_, available = double(seen) - double(window_);
    double bottom = spare / beta_, top = 2 * spare - bottom;
    if (top >= available) {
      top = available;
      bottom = 2 * spare - top;
    }
    if (!(top >= bottom && bottom >= double(window_))) return std::max<std::size_t>(1, slope(spare, spare, 0, 1));
    return slope(top, bottom, layer, layers);
  }

  Kind kind_ = Kind::tokens;
  std::size_t tokens_ = 0, window_ = 0;
  double fraction_ = 0, beta_ = 0;  // beta 0: no pyramid
  std::shared_ptr<const std::vector<std::size_t>> table_;
};

}  // namespace kvc::inline KVC_ABI
