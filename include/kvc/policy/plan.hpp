#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvc/assert.hpp"
#include "kvc/policy/head.hpp"

namespace kvc::inline KVC_ABI {

namespace detail {
/// Sets the flags [begin, end), clipped to those there are.
inline void set_range(std::vector<std::uint8_t>& flags, std::size_t begin, std::size_t end) {
  end = std::min(end, flags.size());
  if (begin < end) std::fill_n(flags.data() + begin, end - begin, std::uint8_t{1});
}
}  // namespace detail

/// What an evicting policy answers about one head: which slots stay, which are rewritten. It starts as "keep everything";
/// the first of first/last/range/keep/top/drop_all starts a choice from nothing kept. The core executes it.
class Plan {
 public:
  /// A slot whose key, value or both are replaced. A side that stays as it is has an empty span.
  struct Rewrite {
    std::size_t slot;
    std::span<const float> key, value;
  };

  Plan() = default;
  explicit Plan(const HeadView& head) { reset(head); }
  /// Back to "keep everything" for `head`, reusing the memory.
  void reset(const HeadView& head) {
    reset(head.size());
    head_ = &head;
  }
  /// The same for a head that nobody reads: slots can be kept and dropped, but not rewritten.
  void reset(std::size_t slots) {
    head_ = nullptr;
    chosen_.assign(slots, 1);
    choosing_ = false;
    for (const Rewritten& rewritten : std::span(rewritten_).first(rewrite_count_)) number_[rewritten.slot] = 0;
    rewrite_count_ = 0;
    multiplicities_.clear();
    precisions_.clear();
  }

  /// Room for heads of `slots` slots.
  void reserve(std::size_t slots) {
    chosen_.reserve(slots);
    candidates_.reserve(slots);
    scratch_.resize(std::max(scratch_.size(), slots));
  }

  void first(std::size_t n) { range(0, n); }
  void last(std::size_t n) { range(chosen_.size() - std::min(n, chosen_.size()), chosen_.size()); }
  /// Keeps slots [begin, end), clipped to the slots there are.
  void range(std::size_t begin, std::size_t end) {
    start();
    detail::set_range(chosen_, begin, end);
  }
  void keep(std::size_t slot) { range(slot, slot + 1); }
  void drop_all() {
    choosing_ = true;
    std::fill(chosen_.begin(), chosen_.end(), std::uint8_t{0});
  }
  /// Drops one slot of those kept so far, at first of all.
  void drop(std::size_t slot) {
    KVC_ASSERT(slot < chosen_.size());
    choosing_ = true;
    chosen_[slot] = 0;
  }
  /// Fills up to `total` kept slots with the highest of `scores` [slots]. On equal scores the older slot stays; NaN loses.
  void top(std::span<const float> scores, std::size_t total) {
    start();
    const std::size_t already = kept_count();
    if (already >= total) return;
    candidates_.clear();
    for (std::size_t slot = 0; slot < std::min(scores.size(), chosen_.size()); ++slot)
      if (!chosen_[slot]) candidates_.push_back(static_cast<std::uint32_t>(slot));
    const std::size_t wanted = std::min(total - already, candidates_.size());
    const auto better = [&](std::uint32_t a, std::uint32_t b) {
      const float x = scores[a], y = scores[b];
      if (std::isnan(x) || std::isnan(y)) return std::isnan(y) && (!std::isnan(x) || a < b);
      return x > y || (x == y && a < b);
    };
    if (wanted < candidates_.size())
      std::nth_element(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(wanted),
                       candidates_.end(), better);
    for (std::size_t i = 0; i < wanted; ++i) chosen_[candidates_[i]] = 1;
  }

  bool kept(std::size_t slot) const { return chosen_[slot] != 0; }
  std::size_t kept_count() const {
    return static_cast<std::size_t>(std::count(chosen_.begin(), chosen_.end(), std::uint8_t{1}));
  }

  /// The key [head_dim] that a kept slot shall have from now on; it starts as a copy of the one it has. The slot's value stays
  /// as it is unless value() asks for it.
  std::span<float> key(std::size_t slot) {
    Rewritten& rewritten = rewrite(slot);
    if (!rewritten.has_key) {
      rewritten.key.resize(head_->shape->head_dim);
      head_->read_slot(slot, rewritten.key, {});
      rewritten.has_key = true;
    }
    return rewritten.key;
  }
  /// The value [value_dim], likewise.
  std::span<float> value(std::size_t slot) {
    Rewritten& rewritten = rewrite(slot);
    if (!rewritten.has_value) {
      rewritten.value.resize(head_->shape->values_dim());
      head_->read_slot(slot, {}, rewritten.value);
      rewritten.has_value = true;
    }
    return rewritten.value;
  }
  /// From now on the slot stands for `tokens` tokens, a positive number: its logit gets log(tokens) added.
  void multiplicity(std::size_t slot, float tokens) { multiplicities_.emplace_back(slot, tokens); }
  /// From now on the slot belongs to a class of precision: 0 is sealed in Stream::format, c in Stream::classes[c - 1]. A slot
  /// that is sealed already keeps its codes.
  void precision(std::size_t slot, std::uint8_t precision_class) { precisions_.emplace_back(slot, precision_class); }

  /// Memory for `n` floats while the plan is made; reused from head to head.
  std::span<float> scratch(std::size_t n) {
    if (scratch_.size() < n) scratch_.resize(n);
    return std::span<float>(scratch_).first(n);
  }

  std::span<const std::uint8_t> chosen() const { return chosen_; }
  std::size_t rewrites() const { return rewrite_count_; }
  Rewrite rewrite_at(std::size_t index) const {
    const Rewritten& rewritten = rewritten_[index];
    return {rewritten.slot, rewritten.has_key ? std::span<const float>(rewritten.key) : std::span<const float>(),
            rewritten.has_value ? std::span<const float>(rewritten.value) : std::span<const float>()};
  }
  std::span<const std::pair<std::size_t, float>> multiplicities() const { return multiplicities_; }
  std::span<const std::pair<std::size_t, std::uint8_t>> precisions() const { return precisions_; }

 private:
  struct Rewritten {
    std::size_t slot = 0;
    bool has_key = false, has_value = false;
    std::vector<float> key, value;
  };

  void start() {
    if (!choosing_) drop_all();
  }
  /// The slot's rewrite, found by its number without a search. A rewrite of an earlier plan lends its memory.
  Rewritten& rewrite(std::size_t slot) {
    KVC_ASSERT(slot < chosen_.size());
    if (number_.size() < chosen_.size()) number_.resize(chosen_.size());
    if (number_[slot] != 0) return rewritten_[number_[slot] - 1];
    if (rewritten_.size() == rewrite_count_) rewritten_.emplace_back();
    Rewritten& fresh = rewritten_[rewrite_count_++];
    number_[slot] = static_cast<std::uint32_t>(rewrite_count_);
    fresh.slot = slot;
    fresh.has_key = fresh.has_value = false;
    return fresh;
  }

  const HeadView* head_ = nullptr;
  std::vector<std::uint8_t> chosen_;
  bool choosing_ = false;
  std::vector<Rewritten> rewritten_;   // the first rewrite_count_ belong to this plan
  std::vector<std::uint32_t> number_;  // of a slot's rewrite, counted from 1; 0: the slot has none
  std::size_t rewrite_count_ = 0;
  std::vector<std::pair<std::size_t, float>> multiplicities_;
  std::vector<std::pair<std::size_t, std::uint8_t>> precisions_;
  std::vector<std::uint32_t> candidates_;
  std::vector<float> scratch_;
};

/// What a cross-layer policy answers about two adjacent layers that keep the same positions: which keys and values share one
/// direction, with the norm that each layer scales it to (MiniCache).
class PairPlan {
 public:
  struct Shared {
    std::size_t slot;
    std::vector<float> direction;
    float norm_below, norm_here;
  };

  /// `first`: slots before it were offered in an earlier call and must not be shared again.
  explicit PairPlan(std::size_t first = 0) : first_(first) {}
  std::size_t first() const { return first_; }

  void share_key(std::size_t slot, std::span<const float> direction, float norm_below, float norm_here) {
    keys_.push_back({slot, {direction.begin(), direction.end()}, norm_below, norm_here});
  }
  void share_value(std::size_t slot, std::span<const float> direction, float norm_below, float norm_here) {
    values_.push_back({slot, {direction.begin(), direction.end()}, norm_below, norm_here});
  }
  std::span<const Shared> keys() const { return keys_; }
  std::span<const Shared> values() const { return values_; }

 private:
  std::size_t first_;
  std::vector<Shared> keys_, values_;
};

/// What a read-time selector answers for one query group: the slots to attend to. It starts empty.
class Selection {
 public:
  void reset(std::size_t slots) { chosen_.assign(slots, 0); }
  /// Slots [begin, end), clipped to the slots there are.
  void range(std::size_t begin, std::size_t end) { detail::set_range(chosen_, begin, end); }
  std::span<const std::uint8_t> chosen() const { return chosen_; }
  /// Memory for the selector's own `n` numbers, reused from call to call.
  std::span<float> scratch(std::size_t n) {
    if (scratch_.size() < n) scratch_.resize(n);
    return std::span<float>(scratch_).first(n);
  }

 private:
  std::vector<std::uint8_t> chosen_;
  std::vector<float> scratch_;
};

}  // namespace kvc::inline KVC_ABI
