#pragma once
#include <cstddef>
#include <cstring>
#include <utility>
#include <vector>

#include "kvc/cache/inside.hpp"
#include "kvc/cache/observing.hpp"

namespace kvc::inline KVC_ABI::cache {

/// Makes a call all or nothing: what it is about to change is saved before, and put back unless the call ends with commit().
/// It saves as little as the call changes:
///   * appended rows: only where they begin, and they are cut off again;
///   * what policies write when they observe: copies of their slots and states;
///   * plans and seals: the head's bookkeeping, which shares all blocks with the head itself.
/// A call on one layer saves into memory that the cache keeps; a call on all layers brings its own.
class Transaction {
 public:
  /// For calls on one layer.
  Transaction(Inside& in, std::size_t layer) : in_(in), first_(in.first_head(layer)), count_(in.shape.kv_heads) {
    save_layer(layer, layer_);
  }
  /// For calls on all layers.
  explicit Transaction(Inside& in) : in_(in), first_(0), count_(in.heads.size()), own_(in.heads.size()) {
    layers_.resize(in.layers.size());
    for (std::size_t layer = 0; layer < in.layers.size(); ++layer) save_layer(layer, layers_[layer]);
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;
  ~Transaction() {
    if (!committed_) roll_back();
    for (std::size_t i = 0; i < count_; ++i) forget(saved(first_ + i));
  }

  /// Call before rows are appended to a head. Different heads may be saved by different threads.
  void before_append(std::size_t head) {
    SavedHead& saved_head = saved(head);
    if (saved_head.marked || saved_head.stored) return;
    saved_head.mark = in_.heads[head].mark();
    saved_head.slots = in_.heads[head].size();
    saved_head.marked = true;
  }
  /// Call before policies observe a head, or plan for it.
  void before_observe(std::size_t head) {
    SavedHead& saved_head = saved(head);
    if (saved_head.imaged || !in_.demands.remembers) return;
    const HeadStore& store = in_.heads[head];
    if (!saved_head.marked) saved_head.slots = store.size();
    std::size_t bytes = 0;
    for (const Node& node : in_.nodes) bytes += node.slot_bytes * saved_head.slots;
    if (saved_head.columns.size() < bytes) saved_head.columns.resize(bytes + bytes / 8);
    std::byte* target = saved_head.columns.data();
    saved_head.states.resize(in_.nodes.size());
    saved_head.copied.resize(in_.nodes.size());
    for (std::size_t node = 0; node < in_.nodes.size(); ++node) {
      const std::size_t size = in_.nodes[node].slot_bytes * saved_head.slots;
      if (size != 0) std::memcpy(target, store.slots().column(node), size);
      target += size;
      saved_head.copied[node] = restores(node) && !in_.memory[head].states[node]->empty();
      if (!saved_head.copied[node]) continue;
      auto& copy = saved_head.states[node];
      if (copy)
        copy->copy_from(*in_.memory[head].states[node]);
      else
        copy = in_.memory[head].states[node]->clone();
    }
    saved_head.imaged = true;
  }
  /// Call before a plan is carried out on a head, before it seals or shares rows.
  void before_act(std::size_t head) {
    SavedHead& saved_head = saved(head);
    if (saved_head.stored) return;
    before_observe(head);
    HeadStore& store = in_.heads[head];
    if (!saved_head.store) saved_head.store.emplace(store);
    saved_head.store->copy_with_room(store);
    saved_head.budgets = in_.memory[head].budgets;
    saved_head.fitted = in_.memory[head].fitted;
    saved_head.stored = true;
  }
  void before_act_on_layer(std::size_t layer) {
    for (std::size_t head = in_.first_head(layer); head < in_.first_head(layer) + in_.shape.kv_heads; ++head)
      before_act(head);
  }
  /// The queries that a layer keeps of its open prompt become these.
  void replace_window(std::size_t layer, std::vector<float>&& window, std::size_t tokens) noexcept {
    SavedLayer& saved_layer = layers_.empty() ? layer_ : layers_[layer];
    LayerState& state = in_.layers[layer];
    if (!saved_layer.window_replaced) saved_layer.window.swap(state.window);
    saved_layer.window_replaced = true;
    state.window = std::move(window);
    state.window_tokens = tokens;
  }

  /// The reference queries of a layer become these, fewer than there were.
  void replace_references(std::size_t layer, References&& references) noexcept {
    SavedLayer& saved_layer = layers_.empty() ? layer_ : layers_[layer];
    LayerState& state = in_.layers[layer];
    if (!saved_layer.references_replaced) std::swap(saved_layer.references_before, state.references);
    saved_layer.references_replaced = true;
    state.references = std::move(references);
  }

  /// Cuts off the rows that were appended since before_append(); what policies observed stays.
  void drop_appended() noexcept {
    for (std::size_t head = first_; head < first_ + count_; ++head)
      if (saved(head).marked) in_.heads[head].revert(saved(head).mark);
  }
  /// What the call did stays.
  void commit() noexcept { committed_ = true; }

 private:
  struct SavedLayer {
    std::size_t layer = 0;
    std::size_t seen = 0, window_tokens = 0, references = 0, reference_stride = 0, prompt_tokens = 0, drafted = 0,
                drafted_scores = 0, drafted_positions = 0;
    Position next_position = 0, changed_at = 0, merged_until = 0;
    bool window_replaced = false, references_replaced = false;
    std::vector<float> window = {};
    References references_before = {};
  };

  SavedHead& saved(std::size_t head) { return own_.empty() ? in_.work_of(head).saved : own_[head]; }
  static void forget(SavedHead& saved_head) noexcept {
    saved_head.marked = saved_head.imaged = false;
    if (saved_head.stored) saved_head.store->release();  // its blocks belong to the head alone again
    saved_head.stored = false;
  }
  /// States that follow from the keys alone are indexed again; others are put back.
  bool restores(std::size_t node) const {
    const Stage::Verbs& verbs = in_.nodes[node].verbs;
    return !verbs.index || verbs.observe || verbs.evict;
  }

  void save_layer(std::size_t layer, SavedLayer& saved_layer) {
    const LayerState& state = in_.layers[layer];
    saved_layer.layer = layer;
    saved_layer.seen = state.seen;
    saved_layer.window_tokens = state.window_tokens;
    saved_layer.references = state.references.positions.size();
    saved_layer.reference_stride = state.references.stride;
    saved_layer.prompt_tokens = state.prompt_tokens;
    saved_layer.drafted = state.drafted.size();
    saved_layer.drafted_scores = state.drafted_scores.size();
    saved_layer.drafted_positions = state.drafted_positions.size();
    saved_layer.next_position = state.next_position;
    saved_layer.changed_at = state.changed_at;
    saved_layer.merged_until = state.merged_until;
  }

  void roll_back() noexcept {
    for (std::size_t head = first_; head < first_ + count_; ++head) roll_back_head(head);
    if (layers_.empty()) roll_back_layer(layer_);
    for (SavedLayer& saved_layer : layers_) roll_back_layer(saved_layer);
    // What attention kept of the newest queries was kept for the call that is taken back.
    for (attention::HeadAttention& attention : in_.attention) attention.window_tokens = 0;
  }
  void roll_back_layer(SavedLayer& saved_layer) noexcept {
    LayerState& state = in_.layers[saved_layer.layer];
    state.seen = saved_layer.seen;
    state.next_position = saved_layer.next_position;
    state.changed_at = saved_layer.changed_at;
    state.merged_until = saved_layer.merged_until;
    if (saved_layer.window_replaced) state.window.swap(saved_layer.window);
    state.window_tokens = saved_layer.window_tokens;
    state.prompt_tokens = saved_layer.prompt_tokens;
    if (saved_layer.references_replaced) std::swap(state.references, saved_layer.references_before);
    state.references.cut(saved_layer.references, in_.shape.query_heads * in_.shape.head_dim);
    state.references.stride = saved_layer.reference_stride;
    state.drafted.resize(saved_layer.drafted);
    state.drafted_scores.resize(saved_layer.drafted_scores);
    state.drafted_positions.resize(saved_layer.drafted_positions);
  }
  void roll_back_head(std::size_t head) noexcept {
    SavedHead& saved_head = saved(head);
    HeadStore& store = in_.heads[head];
    HeadMemory& memory = in_.memory[head];
    if (saved_head.stored) {
      std::swap(store, *saved_head.store);
      memory.budgets.swap(saved_head.budgets);
      memory.fitted = saved_head.fitted;
    }
    if (saved_head.imaged) {
      const std::byte* source = saved_head.columns.data();
      for (std::size_t node = 0; node < in_.nodes.size(); ++node) {
        const std::size_t size = in_.nodes[node].slot_bytes * saved_head.slots;
        if (size != 0) std::memcpy(store.column(node), source, size);
        source += size;
        if (saved_head.copied[node])
          memory.states[node].swap(saved_head.states[node]);
        else if (restores(node))
          memory.states[node]->close_prompt();  // there was no memory of a prompt before the call
      }
    }
    if (saved_head.marked) store.revert(saved_head.mark);
    memory.changed = false;
    in_.work_of(head).planned = in_.work_of(head).seals = false;
    in_.work_of(head).seal->step.reset();
    if (!in_.demands.indexes || !(saved_head.marked || saved_head.stored)) return;
    index_again(head, saved_head.stored ? 0 : saved_head.slots);
  }
  /// The indexes see the rows that are left. Where that needs memory that is refused, it is made up for at the next pass.
  void index_again(std::size_t head, std::size_t from) noexcept {
    in_.memory[head].index_from = std::min(from, in_.memory[head].index_from);
#if defined(__cpp_exceptions)
    try {
#endif
      const WorkspacePool::Lease workspace(*in_.workspaces);
      index_head(in_, head, from, Event::decode, *workspace);
#if defined(__cpp_exceptions)
    } catch (...) {
    }
#endif
  }

  Inside& in_;
  std::size_t first_, count_;
  bool committed_ = false;
  SavedLayer layer_;  // what a call on one layer saves
  std::vector<SavedHead> own_;
  std::vector<SavedLayer> layers_;
};

}  // namespace kvc::inline KVC_ABI::cache
