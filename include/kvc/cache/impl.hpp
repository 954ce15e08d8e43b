#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "kvc/attention/observe.hpp"
#include "kvc/cache/core.hpp"
#include "kvc/cache/feed.hpp"
#include "kvc/storage/arena.hpp"
#include "kvc/storage/head_store.hpp"
#include "kvc/workspace.hpp"

namespace kvc::inline KVC_ABI {

/// The inside of CacheCore. checks.hpp refuses what cannot be done, passes.hpp appends and attends, acting.hpp lets the
/// policies act, upkeep.hpp constructs, forks and counts.
struct CacheCore::Impl {
  Impl(const CacheShape& shape, Stages stages, const CacheOptions& options);
  Impl(const Impl& other);

  // What CacheCore forwards; see there.
  void prefill(std::size_t layer, const Tokens& tokens, Rows<float> out, bool last_chunk);
  void decode(std::size_t layer, const Tokens& tokens, Rows<float> out);
  void draft(std::size_t layer, const Tokens& tokens, Rows<float> out);
  void accept(std::size_t tokens);
  void probe(std::size_t layer, const Tokens& tokens, Rows<float> out, Position begin, Position end);
  void attend(std::size_t layer, ConstRows queries, Rows<float> out, float* lse) const;
  void compress();
  void make_room(std::size_t tokens);
  bool truncate(Position from);
  void clear();
  void reserve(std::size_t tokens);
  Stats stats() const;
  Stats stats(std::size_t layer) const;
  std::vector<Position> positions(HeadId id) const;
  void gather(HeadId id, Rows<float> keys, Rows<float> values) const;
  static void decode_batch(std::span<Impl* const> caches, std::size_t layer, const Tokens& tokens, Rows<float> out,
                           Executor& executor);

  /// What a layer remembers between calls.
  struct LayerState {
    std::size_t seen = 0;
    Position next_position = 0;
    Position changed_at = 0;         ///< truncating to a position before this is not exact
    Position merged_until = 0;       ///< tokens before it were offered for merging with the layer below
    std::vector<float> window = {};  ///< last queries of the prompt [window_tokens, query_heads * head_dim]
    std::size_t window_tokens = 0;
    std::vector<float> drafted = {};         ///< queries of the drafted tokens
    std::vector<float> drafted_scores = {};  ///< their external scores
    std::size_t drafted_tokens = 0;
  };
  /// What the stages keep about a head.
  struct HeadMemory {
    std::vector<std::unique_ptr<AnyState>> states;
    std::vector<std::size_t> budgets;  ///< per stage, once allocate() has set it
    bool changed = false;              ///< a plan or a seal took effect in this call
  };
  /// Working memory of one KV head of whichever layer is being worked on.
  struct HeadWork {
    Plan plan;
    Selection selection;
    ConstRows attention;                  ///< what Observation::attention shows
    std::vector<float> prompt_attention;  ///< and where it lies after a pass of several tokens
    std::vector<float> keys;              ///< decoded for an index
    /// What the pass knows of HeadView::window_sums: of so many tokens and this head; 0 tokens: nothing any more.
    std::size_t window_tokens = 0, window_head = 0;
    std::vector<float> window_sums;  ///< [group, slots]
  };
  /// What allocate() and allocate_all() are shown, kept from call to call.
  struct JointWork {
    std::vector<detail::HeadFeed> feeds;
    std::vector<AnyHead> heads;
    std::vector<std::size_t> budgets;
  };
  /// One call of prefill, decode, draft or probe on a layer.
  struct Pass {
    std::size_t layer = 0;
    Event event = Event::decode;
    const Tokens* tokens = nullptr;
    Rows<float> out = {};
    Position probe_begin = 0, probe_end = 0;
    Feed feed = Feed::none;
    bool behind = false;  ///< rows go behind all others, so that several passes can be looked at as one
    bool serial = false;  ///< this thread takes one head after the other
  };

  std::size_t index(HeadId id) const;
  const HeadStore& store(HeadId id) const { return heads_[index(id)]; }
  std::size_t first_head(std::size_t layer) const { return layer * shape_.kv_heads; }
  HeadWork& work(std::size_t head) { return work_[head % shape_.kv_heads]; }
  HeadId id_of(std::size_t head) const {
    return {static_cast<std::uint32_t>(head / shape_.kv_heads), static_cast<std::uint32_t>(head % shape_.kv_heads)};
  }
  Executor& executor() const { return *executor_; }
  attention::Settings settings() const { return {&shape_, in_cache_, options_.arithmetic}; }

  /// Number of the stage with that policy type.
  std::size_t stage_of(const void* policy) const;

  // checks.hpp
  void check_layer(std::size_t layer) const;
  void check_no_drafts(const char* call) const;
  void check_tokens(const char* call, std::size_t layer, const Tokens& tokens, const Rows<float>& out,
                    bool out_optional) const;
  void check_rows(const char* call, const char* name, const ConstRows& rows, std::size_t count, std::size_t dim) const;

  // passes.hpp
  std::span<const Position> begin_pass(const Pass& pass);
  void append_head(const Pass& pass, std::size_t head, std::span<const Position> positions, Workspace& workspace);
  void run_pass(Pass& pass, std::span<const Position> positions);
  void decode_on(Executor& executor, Pass& pass, std::span<const Position> positions);
  const HeadStore* next_head(const Pass& pass, std::size_t head) const;
  void token_pass(const Pass& pass, std::span<const Position> positions, std::size_t head, Workspace& workspace);
  void attend_tokens(const Pass& pass);
  void attend_tile(const Pass& pass, std::size_t local, std::size_t first, std::size_t most, float* sums,
                   std::size_t stride, Workspace& workspace);
  void attend_window(const Pass& pass, std::size_t local, std::size_t window, Workspace& workspace);
  void attend_strips(const Pass& pass);
  void attend_parts(const Pass& pass, std::size_t parts);
  void observe_rows(const Pass& pass);
  void remember_window(LayerState& state, ConstRows queries, std::size_t capacity) const;
  std::size_t attention_rows(const Pass& pass) const;
  std::size_t parts_of(std::size_t head) const;
  void attend_token(const attention::HeadReader& reader, attention::PreparedQueries& queries,
                    attention::Partial& state) const;
  std::span<const std::uint8_t> select(std::size_t head, ConstRows queries, Workspace& workspace);
  std::size_t forgotten_tokens(std::size_t layer, Position from) const;
  void load_shifts(const HeadStore& head, std::size_t tokens, std::span<std::int32_t> shifts) const;

  // acting.hpp
  AnyHead any_head(std::size_t stage, std::size_t head, Event event, HeadSource& source);
  detail::HeadFeed feed_of(std::size_t head, Workspace& workspace) const;
  void index_head(std::size_t head, std::size_t from, Event event, Workspace& workspace);
  void observe_head(const Pass& pass, std::size_t head, std::size_t first_new, Workspace& workspace);
  void evict_head(std::size_t stage, std::size_t head, Event event, Workspace& workspace);
  void execute(std::size_t head, Event event, Workspace& workspace);
  void act_alone(std::size_t head, Event event, Workspace& workspace);
  void allocate(std::size_t stage, std::size_t first, std::size_t count, Event event, bool over_layers);
  void act_layer(std::size_t layer, Event event, std::size_t first_stage, std::size_t last_stage);
  void act(std::size_t layer, Event event);
  void seal_layer(std::size_t layer, Event event);
  bool is_pair(std::size_t layer) const;
  bool merge_layers(std::size_t layer, Event event);
  void share_rows(Role role, std::size_t below, std::size_t here, std::span<const PairPlan::Shared> shared,
                  Workspace& workspace);
  void finish_layer(std::size_t layer, Event event);

  CacheShape shape_;
  Stages stages_;
  CacheOptions options_;
  SerialExecutor serial_;
  Executor* executor_;
  std::shared_ptr<Arena> arena_;
  std::pmr::memory_resource* block_memory_;
  std::shared_ptr<WorkspacePool> workspaces_ = std::make_shared<WorkspacePool>();  ///< forks share it

  Needs needs_;
  bool in_cache_ = false, selects_ = false, indexes_ = false, observes_ = false;
  bool shrinks_ = false;      ///< some stage removes slots
  bool merges_ = false;       ///< some stage merges adjacent layers
  bool acts_alone_ = true;    ///< no stage looks at more than one head
  std::size_t joint_from_;    ///< stages from here on wait for the last layer (allocate_all)
  std::size_t incoming_ = 0;  ///< of make_room

  std::vector<HeadStore> heads_;
  std::vector<HeadMemory> memory_;
  std::vector<HeadWork> work_;  ///< per KV head of a layer
  JointWork joint_;
  std::vector<LayerState> layers_;
  std::vector<Position> ramp_;  ///< 0, 1, 2, …: positions and slot numbers before anything was evicted
  std::vector<float> partials_, sums_;
};

}  // namespace kvc

#include "kvc/cache/acting.hpp"
#include "kvc/cache/checks.hpp"
#include "kvc/cache/passes.hpp"
#include "kvc/cache/upkeep.hpp"
#if !defined(KVC_COMPILED)
#include "kvc/cache/forward.hpp"
#endif
