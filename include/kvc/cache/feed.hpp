#pragma once
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/attention/observe.hpp"
#include "kvc/policy/head.hpp"
#include "kvc/policy/scoring.hpp"

namespace kvc::inline KVC_ABI::detail {

/// The core's side of a HeadView: decodes and computes what the policy asks for, once per event.
class HeadFeed final : public HeadSource {
 public:
  HeadFeed(const HeadStore& head, const attention::Settings& settings, std::size_t head_index, ConstRows window,
           Workspace& workspace)
      : head_(head), settings_(settings), head_index_(head_index), window_(window), workspace_(workspace) {}

  /// Decodes keys into `memory` from now on, which its owner keeps for the next feed.
  void reuse(std::vector<float>& memory) { reused_ = &memory; }

  /// What window_sums() of so many tokens says.
  void know_sums(std::size_t tokens, const float* sums) {
    known_tokens_ = tokens;
    known_sums_ = sums;
  }

  ConstRows keys() override { return keys_from(0); }
  ConstRows keys_from(std::size_t first) override {
    if (!has_keys_ || first < keys_first_) {
      keys_first_ = first;
      has_keys_ = true;
      gather(head_.keys(), first, keys_memory());
    }
    const std::size_t dim = head_.keys().dim();
    return {keys_memory().data() + (first - keys_first_) * dim, head_.size() - first, dim};
  }
  ConstRows values() override { return values_from(0); }
  ConstRows values_from(std::size_t first) override {
    if (!has_values_ || first < values_first_) {
      values_first_ = first;
      has_values_ = true;
      gather(head_.values(), first, values_);
    }
    const std::size_t dim = head_.values().dim();
    return {values_.data() + (first - values_first_) * dim, head_.size() - first, dim};
  }
  void read_slot(std::size_t slot, std::span<float> key, std::span<float> value) override {
    head_.keys().gather(slot, {key.data(), 1, key.size()});
    head_.values().gather(slot, {value.data(), 1, value.size()});
  }
  ConstRows unrotated_keys() override {
    const ConstRows rotated = keys();
    if (settings_.shape->rotary.inv_freq.empty())
      fail(ErrorCode::missing_feed, "CacheShape::rotary: the policy needs un-rotated keys, but the table is empty");
    if (unrotated_.empty()) {
      unrotated_.assign(rotated.data, rotated.data + rotated.count * rotated.dim);
      for (std::size_t slot = 0; slot < rotated.count; ++slot)
        rotate({unrotated_.data() + slot * rotated.dim, rotated.dim}, settings_.shape->rotary,
               -double(head_.position(slot)));
    }
    return {unrotated_.data(), rotated.count, rotated.dim};
  }
  ConstRows window_attention(std::size_t window) override {
    const ConstRows logits = window_logits(window);
    attention::softmax_rows(logits_, logits.count, logits.dim);
    logits_window_ = 0;  // the logits are probabilities now
    return logits;
  }
  ConstRows window_sums(std::size_t window) override {
    const std::size_t tokens = window_tokens(window), slots = head_.size(), group = settings_.shape->group();
    if (tokens == 0) return {nullptr, 0, slots};
    if (tokens == known_tokens_) return {known_sums_, group, slots};
    sums_.resize(group * slots);
    const Rows<float> sums(sums_.data(), group, slots);
    if (attention::rows_are_slots(head_)) {
      const attention::Queries queries = window_queries(tokens);
      Workspace::Frame frame(workspace_);
      attention::newest_sums(attention::HeadReader(head_, settings_, frame), queries, sums_.data(), slots);
    } else {
      const ConstRows attention = window_attention(window);
      for (std::size_t g = 0; g < group; ++g) reduce_rows(attention, g, group, Reduce::sum, sums[g]);
    }
    return sums;
  }
  ConstRows window_logits(std::size_t window) override {
    const std::size_t tokens = window_tokens(window), slots = head_.size(), group = settings_.shape->group();
    if (logits_window_ != tokens || logits_.empty()) {
      const attention::Queries queries = window_queries(tokens);
      logits_.resize(tokens * group * slots);
      Workspace::Frame frame(workspace_);
      const attention::HeadReader reader(head_, settings_, frame);
      attention::slot_logits(reader, queries, slots - tokens + 1, logits_);
      logits_window_ = tokens;
    }
    return {logits_.data(), tokens * group, slots};
  }

 private:
  std::size_t window_tokens(std::size_t window) const { return std::min({window, window_.count, head_.size()}); }
  /// The last `tokens` of the window.
  attention::Queries window_queries(std::size_t tokens) {
    const std::size_t slots = head_.size();
    queries_.resize(tokens * settings_.shape->group() * settings_.shape->head_dim);
    attention::Queries queries = attention::load_queries(
        *settings_.shape, window_.subrows(window_.count - tokens, tokens), head_index_, queries_);
    if (settings_.in_cache) {
      shifts_.clear();
      for (std::size_t slot = slots - tokens; slot < slots; ++slot)
        shifts_.push_back(static_cast<std::int32_t>(slot) - head_.position(slot));
      queries.shifts = shifts_;
    }
    return queries;
  }
  std::vector<float>& keys_memory() { return reused_ ? *reused_ : own_keys_; }
  void gather(const RowStore& store, std::size_t first, std::vector<float>& into) const {
    into.resize((head_.size() - first) * store.dim());
    store.gather(first, {into.data(), head_.size() - first, store.dim()});
  }

  const HeadStore& head_;
  attention::Settings settings_;
  std::size_t head_index_;
  ConstRows window_;
  Workspace& workspace_;
  std::vector<float> own_keys_, values_, unrotated_, queries_, logits_, sums_;
  std::vector<std::int32_t> shifts_;
  std::vector<float>* reused_ = nullptr;
  bool has_keys_ = false, has_values_ = false;
  std::size_t keys_first_ = 0, values_first_ = 0, logits_window_ = 0, known_tokens_ = 0;
  const float* known_sums_ = nullptr;
};

}  // namespace kvc::detail
