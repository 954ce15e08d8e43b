#pragma once
#include <algorithm>
#include <cstddef>
#include <span>
#include <vector>

#include "kvc/cache/inside.hpp"
#include "kvc/storage/turned_keys.hpp"

namespace kvc::inline KVC_ABI::cache {

/// The core's side of a HeadView: decodes and computes what a policy asks for, once per event. What it hands out lies in
/// `frame`, which outlives it; while a policy works, nobody else takes memory of that frame's workspace.
class HeadFeed final : public HeadSource {
 public:
  HeadFeed(const Inside& in, std::size_t head, Workspace::Frame& frame)
      : store_(&in.heads[head]),
        settings_(in.settings(in.layer_of(head))),
        local_(head % in.shape.kv_heads),
        state_(&in.layers[in.layer_of(head)]),
        attention_(&in.attention[head % in.shape.kv_heads]),
        in_(&in),
        frame_(&frame) {}

  /// Decodes keys into `memory` from now on, which its owner keeps for the next feed.
  void reuse(std::vector<float>& memory) { reused_ = &memory; }

  /// Members that score heads one by one do so on this executor.
  void run_on(Executor& executor) { executor_ = &executor; }
  void score_heads(const Stage& member, std::span<const AnyHead> heads, ScoreSpans scores) override {
    if (!executor_) return HeadSource::score_heads(member, heads, scores);
    executor_->parallel_for(heads.size(), [&](std::size_t i) {
      if (scores[i].empty()) return;
      const WorkspacePool::Lease workspace(*in_->workspaces);
      Workspace::Frame frame(*workspace);
      const HeadId id = heads[i].view.id;
      HeadFeed own(*in_, id.layer * in_->shape.kv_heads + id.head, frame);
      AnyHead head = heads[i];
      head.view.source = &own;
      head.view.scores = {};
      member.score(head, scores[i]);
    });
  }

  /// The positions of the head's slots.
  std::span<const Position> positions() {
    const PositionList& list = store_->slots().positions();
    const std::size_t slots = store_->size();
    // A head that had lost slots may be whole again after a rollback, when nothing has filled the ramp for it.
    if (list.identity() && in_->ramp.size() >= slots) return std::span<const Position>(in_->ramp).first(slots);
    if (!list.identity() && !list.packed()) return list.entries();
    if (positions_.empty()) list.copy_to(positions_ = frame_->take<Position>(slots));
    return positions_;
  }
  /// How many tokens each slot stands for; empty: one.
  std::span<const float> multiplicity() {
    const Multiplicity& tokens = store_->slots().multiplicity();
    if (!tokens.empty() && multiplicity_.empty()) tokens.copy_to(multiplicity_ = frame_->take(store_->size()));
    return multiplicity_;
  }

  ConstRows keys_from(std::size_t first) override { return decoded_from(first, Role::key, keys_, reused_); }
  ConstRows values_from(std::size_t first) override { return decoded_from(first, Role::value, values_, nullptr); }
  void read_slot(std::size_t slot, std::span<float> key, std::span<float> value) override {
    if (!key.empty()) gather_keys(*store_, settings_.shape->rotary, slot, {key.data(), 1, key.size()});
    if (!value.empty()) store_->values().gather(slot, {value.data(), 1, value.size()});
  }
  ConstRows unrotated_keys() override {
    const ConstRows rotated = keys_from(0);
    if (settings_.shape->rotary.inv_freq.empty())
      fail(ErrorCode::missing_feed, "CacheShape::rotary: the policy needs un-rotated keys, but the table is empty");
    if (unrotated_.empty() && rotated.count != 0) {
      unrotated_ = frame_->take(rotated.count * rotated.dim);
      for (std::size_t slot = 0; slot < rotated.count; ++slot) {
        const std::span<float> row = unrotated_.subspan(slot * rotated.dim, rotated.dim);
        std::ranges::copy(rotated[slot], row.begin());
        rotate(row, settings_.shape->rotary, -double(store_->slots().position(slot)));
      }
    }
    return {unrotated_.data(), rotated.count, rotated.dim};
  }
  ConstRows products(ConstRows rows) override {
    const std::size_t slots = store_->size(), dim = settings_.shape->head_dim;
    if (products_.size() < rows.count * slots) products_ = frame_->take(rows.count * slots);
    Workspace::Frame inner(frame_->workspace());
    const auto packed = inner.take(rows.count * dim);
    for (std::size_t row = 0; row < rows.count; ++row)
      std::ranges::copy(rows[row].first(dim), packed.begin() + std::ptrdiff_t(row * dim));
    attention::Settings plain = settings_;
    plain.in_cache = false;
    plain.arithmetic = Arithmetic::exact;
    const attention::HeadReader reader(*store_, plain, inner);
    attention::slot_products(reader, {packed.data(), rows.count, 1, dim, {}}, products_);
    return {products_.data(), rows.count, slots};
  }
  ConstRows window_queries(std::size_t window) override {
    const std::size_t tokens = std::min(window, state_->window_tokens), dim = settings_.shape->head_dim,
                      group = settings_.shape->group();
    const ConstRows kept = kept_window();
    if (tokens == 0) return {nullptr, 0, dim};
    const auto rows = frame_->take(tokens * group * dim);
    for (std::size_t t = 0; t < tokens; ++t)
      std::ranges::copy(kept[kept.count - tokens + t].subspan(local_ * group * dim, group * dim),
                        rows.begin() + std::ptrdiff_t(t * group * dim));
    return {rows.data(), tokens * group, dim};
  }
  ConstRows window_attention(std::size_t window) override {
    const ConstRows logits = window_logits(window);
    attention::softmax_rows(logits_, logits.count, logits.dim, sink_logits());
    logits_window_ = 0;  // the logits are probabilities now
    return logits;
  }
  ConstRows window_sums(std::size_t window) override {
    const std::size_t tokens = seen_window(window), slots = store_->size(), group = settings_.shape->group();
    if (tokens == 0) return {nullptr, 0, slots};
    if (attention_->knows_window(*store_, tokens)) return {attention_->window_sums.data(), group, slots};
    const Rows<float> sums(frame_->take(group * slots).data(), group, slots);
    if (attention::rows_are_slots(*store_)) {
      Workspace::Frame inner(frame_->workspace());
      const attention::Queries queries = loaded_window(tokens, inner);
      const attention::HeadReader reader(*store_, settings_, inner);
      attention::newest_sums(reader, queries, sums.data, slots);
    } else {
      const ConstRows attention = window_attention(window);
      for (std::size_t g = 0; g < group; ++g) reduce_rows(attention, g, group, Reduce::sum, sums[g]);
    }
    return sums;
  }
  ConstRows window_logits(std::size_t window) override {
    const std::size_t tokens = seen_window(window), slots = store_->size(), group = settings_.shape->group();
    if (logits_window_ != tokens || tokens == 0) {
      if (logits_.size() < tokens * group * slots) logits_ = frame_->take(tokens * group * slots);
      Workspace::Frame inner(frame_->workspace());
      const attention::Queries queries = loaded_window(tokens, inner);
      const attention::HeadReader reader(*store_, settings_, inner);
      attention::slot_logits(reader, queries, slots - tokens + 1, logits_.first(tokens * group * slots));
      logits_window_ = tokens;
    }
    return {logits_.data(), tokens * group, slots};
  }
  ReferenceQueries reference_queries() override {
    const std::size_t tokens = state_->references.positions.size(), dim = settings_.shape->head_dim,
                      group = settings_.shape->group(), layer_dim = settings_.shape->query_heads * dim;
    if (tokens == 0) return {{nullptr, 0, dim}, {}, {}};
    const auto rows = frame_->take(tokens * group * dim);
    for (std::size_t t = 0; t < tokens; ++t)
      std::copy_n(state_->references.queries.data() + t * layer_dim + local_ * group * dim, group * dim,
                  rows.begin() + std::ptrdiff_t(t * group * dim));
    return {{rows.data(), tokens * group, dim}, state_->references.positions, state_->references.numbers};
  }

 private:
  struct Decoded {
    std::span<float> rows;
    std::size_t first = 0;
    bool known = false;
  };

  ConstRows decoded_from(std::size_t first, Role role, Decoded& decoded, std::vector<float>* reused) {
    const RowStore& store = role == Role::key ? store_->keys() : store_->values();
    const std::size_t dim = store.dim(), count = store_->size() - first;
    if (!decoded.known || first < decoded.first) {
      if (reused) reused->resize(std::max(reused->size(), count * dim));
      decoded.rows = reused ? std::span<float>(*reused) : frame_->take(count * dim);
      const Rows<float> rows(decoded.rows.data(), count, dim);
      if (role == Role::key)
        gather_keys(*store_, settings_.shape->rotary, first, rows);
      else
        store.gather(first, rows);
      decoded.first = first;
      decoded.known = true;
    }
    return {decoded.rows.data() + (first - decoded.first) * dim, count, dim};
  }
  /// The queries kept of the open prompt [tokens, query_heads * head_dim].
  ConstRows kept_window() const {
    return {state_->window.data(), state_->window_tokens, settings_.shape->query_heads * settings_.shape->head_dim};
  }
  /// Of so many queries, those that are kept and whose tokens are still slots.
  std::size_t seen_window(std::size_t window) const {
    return std::min({window, state_->window_tokens, store_->size()});
  }
  /// The last `tokens` of the window, scaled.
  attention::Queries loaded_window(std::size_t tokens, Workspace::Frame& frame) const {
    const ConstRows kept = kept_window();
    attention::Queries queries =
        attention::load_queries(settings_, kept.subrows(kept.count - tokens, tokens), local_,
                                frame.take(tokens * settings_.shape->group() * settings_.shape->head_dim));
    if (settings_.in_cache) queries.shifts = attention::newest_shifts(*store_, tokens, frame);
    if (settings_.window != 0) queries.positions = attention::newest_positions(*store_, tokens, 0, tokens, frame);
    return queries;
  }
  /// Of the head's query heads.
  std::span<const float> sink_logits() const {
    const std::size_t group = settings_.shape->group();
    return settings_.sink_logits.empty() ? settings_.sink_logits : settings_.sink_logits.subspan(local_ * group, group);
  }

  const HeadStore* store_;
  attention::Settings settings_;
  std::size_t local_;
  const LayerState* state_;
  const attention::HeadAttention* attention_;
  const Inside* in_;
  Executor* executor_ = nullptr;
  Workspace::Frame* frame_;
  std::span<Position> positions_;
  std::span<float> multiplicity_;
  Decoded keys_, values_;
  std::span<float> unrotated_, logits_, products_;
  std::size_t logits_window_ = 0;
  std::vector<float>* reused_ = nullptr;
};

}  // namespace kvc::inline KVC_ABI::cache
