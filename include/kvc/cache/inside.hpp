#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <vector>

#include "kvc/attention/layer_pass.hpp"
#include "kvc/cache/core.hpp"
#include "kvc/storage/arena.hpp"
#include "kvc/storage/head_store.hpp"
#include "kvc/workspace.hpp"

// What is behind CacheCore. The functions that work on it: checks.hpp refuses what cannot be done, passes.hpp appends and
// attends, observing.hpp and acting.hpp let the policies look and act, merging.hpp lets adjacent layers share rows,
// editing.hpp changes tokens that are there, transaction.hpp takes everything back, lifecycle.hpp constructs, forks and counts.
namespace kvc::inline KVC_ABI::cache {

/// A stage of the pipeline, or a member of one: whoever has memory of its own.
struct Node {
  const Stage* stage = nullptr;
  std::size_t owner = 0;  ///< number of the stage it is or belongs to
  Stage::Verbs verbs = {};
  Needs needs = {};
  std::size_t slot_bytes = 0;
};

/// What the stages of a pipeline ask of the core, together.
struct Demands {
  std::size_t query_window = 0;
  std::size_t query_stride = 0;  ///< the smallest that a node asks for; all nodes see the same reference queries
  std::size_t query_most = 0;    ///< the largest limit of those nodes; 0: none
  bool queries = false, external_scores = false;
  bool observes = false, selects = false, indexes = false, shrinks = false, merges = false;
  bool rests = true;       ///< whether no stage drops slots while tokens are generated
  bool remembers = false;  ///< whether some node keeps slots or a state
};

/// Every `stride`-th query of an open prompt and of its probes.
struct References {
  std::vector<float> queries;  ///< [tokens, query_heads * head_dim]
  std::vector<Position> positions;
  std::vector<std::uint32_t> numbers;  ///< of the tokens, among those of the prompt and its probes
  std::size_t stride = 0;              ///< 0: none was kept yet

  /// The first `tokens` stay.
  void cut(std::size_t tokens, std::size_t dim) noexcept {
    queries.resize(tokens * dim);
    positions.resize(tokens);
    numbers.resize(tokens);
  }
};

/// What a layer remembers between calls.
struct LayerState {
  std::size_t seen = 0;
  Position next_position = 0;
  Position changed_at = 0;    ///< truncating to a position before this one is not exact
  Position merged_until = 0;  ///< tokens before it were offered for merging with the layer below
  Position drafted_from = 0;  ///< next_position before the first drafted token

  /// The largest magnitudes that a plan may write into a key, or a value, of the layer: layer_limit() as the call in progress began.
  float key_limit = 0, value_limit = 0;

  std::vector<float> window;  ///< the last queries of the open prompt [window_tokens, query_heads * head_dim]
  std::size_t window_tokens = 0;
  References references;
  std::size_t prompt_tokens = 0;  ///< how many tokens the open prompt and its probes have

  std::vector<float> drafted;         ///< queries of the drafted tokens
  std::vector<float> drafted_scores;  ///< their external scores
  std::vector<Position> drafted_positions;
  std::size_t drafted_tokens() const { return drafted_positions.size(); }
};

/// What a verb has allocated to a head, and what the head would have had without it then. A budget that grows with the tokens
/// seen makes both grow alike.
struct Allocated {
  std::size_t slots = Unlimited;  ///< Unlimited: nothing was allocated
  std::size_t own = Unlimited;

  /// What the head may hold once it would have `now` without the verb.
  std::size_t at(std::size_t now) const {
    if (slots == Unlimited) return now;
    const std::size_t growth = own < now && now != Unlimited ? now - own : 0;
    return slots > Unlimited - growth ? Unlimited : slots + growth;
  }
};

/// What the stages keep about a head, besides their slots.
struct HeadMemory {
  std::vector<std::unique_ptr<AnyState>> states;  ///< per node
  std::vector<Allocated> budgets;                 ///< per stage, once a verb that allocates has set it
  std::vector<StageMemory> places;                ///< per node: where its memory lies now (see any_head)
  bool fitted = false;                            ///< whether Stage::fit was asked
  bool changed = false;                           ///< whether a plan, a seal or an observation took effect in this call
  std::size_t index_from = Unlimited;             ///< slots from here on must be indexed again; Unlimited: none
};

/// What one head was before a call, as far as the call changes it (see Transaction).
struct SavedHead {
  bool marked = false, imaged = false, stored = false;
  HeadStore::Mark mark = {};                      ///< where its rows ended before any was appended
  std::size_t slots = 0;                          ///< how many slots it had
  std::vector<std::byte> columns;                 ///< what the policies kept per slot, node after node
  std::vector<std::unique_ptr<AnyState>> states;  ///< per node, a copy of its state
  std::vector<std::uint8_t> copied;               ///< per node: whether its state was copied, because it was not empty
  std::vector<Allocated> budgets;
  bool fitted = false;
  std::optional<HeadStore> store;  ///< the whole head as it was before plans were carried out
};

/// A seal that is prepared and waits for the other heads of its layer.
struct WaitingSeal {
  Workspace memory;
  std::optional<HeadStore::SealStep> step;
};

/// Working memory of one KV head of whichever layer is worked on.
struct HeadWork {
  Plan plan;
  bool planned = false;        ///< whether `plan` is made, changes something and waits to be carried out
  std::size_t next_stage = 0;  ///< the stage behind the one that made the plan; 0: the layer's window slides
  bool in_place = false;       ///< whether the plan only drops slots, and no row moves for it
  bool seals = false;          ///< whether nothing is planned, but something is to be sealed
  std::unique_ptr<WaitingSeal> seal = std::make_unique<WaitingSeal>();  ///< the seal, where it is prepared
  std::vector<float> scores;
  Selection selection;
  std::vector<float> keys;  ///< memory for keys that are decoded for an index
  SavedHead saved;
};

struct Inside {
  CacheShape shape;
  Stages stages;
  CacheOptions options;
  SerialExecutor serial;
  Executor* executor = nullptr;
  std::shared_ptr<Arena> arena;  ///< shared by forks; null: the engine's own memory resource serves
  std::pmr::memory_resource* block_memory = nullptr;
  std::shared_ptr<WorkspacePool> workspaces;  ///< shared by forks

  std::vector<Node> nodes;              ///< every stage, each followed by its members
  std::vector<std::size_t> stage_node;  ///< per stage, its number among the nodes
  Demands demands;
  std::size_t waits_from = 0;  ///< stages from here on wait for the last layer

  std::vector<HeadStore> heads;  ///< layer-major
  std::vector<HeadMemory> memory;
  std::vector<HeadWork> work;                       ///< per KV head of a layer
  std::vector<attention::HeadAttention> attention;  ///< per KV head of a layer: what policies are shown of a pass
  std::vector<LayerState> layers;
  std::vector<Position> ramp;  ///< 0, 1, 2, …: the positions of a head from which nothing was evicted
  std::vector<float> feed_memory, part_memory;
  std::vector<std::vector<float>> joint_scores;  ///< per head, what a joint verb said; kept for its memory
  std::vector<Position> new_positions;           ///< memory for the positions of a pass, where the engine names none

  std::size_t first_head(std::size_t layer) const { return layer * shape.kv_heads; }
  std::size_t layer_of(std::size_t head) const { return head / shape.kv_heads; }
  HeadWork& work_of(std::size_t head) { return work[head % work.size()]; }
  const HeadWork& work_of(std::size_t head) const { return work[head % work.size()]; }
  attention::HeadAttention& attention_of(std::size_t head) { return attention[head % shape.kv_heads]; }
  HeadId id_of(std::size_t head) const {
    return {static_cast<std::uint32_t>(head / shape.kv_heads), static_cast<std::uint32_t>(head % shape.kv_heads)};
  }
  std::span<HeadStore> heads_of(std::size_t layer) {
    return std::span(heads).subspan(first_head(layer), shape.kv_heads);
  }
  std::span<const HeadStore> heads_of(std::size_t layer) const {
    return std::span(heads).subspan(first_head(layer), shape.kv_heads);
  }
  bool in_cache(std::size_t layer) const {
    for (const auto& stage : stages)
      if (stage->works_on(layer) && stage->positions() == Positions::in_cache) return true;
    return false;
  }
  attention::Settings settings(std::size_t layer) const {
    return {&shape, in_cache(layer), options.arithmetic, shape.window(layer), shape.sink_logits(layer)};
  }
};

/// Something that happened to a layer, on which policies act.
struct Occasion {
  Event event = Event::decode;
  std::size_t incoming = 0;  ///< the tokens that Event::make_room announces
  Executor* executor = nullptr;
};

/// The layers that an occasion in one layer finishes: none while stages wait for the last layer, then all of them; a layer and
/// the one below it where the two merge; else the layer itself.
struct Finished {
  std::size_t first = 0, count = 0;
};

/// One call of prefill, decode, draft or probe on a layer.
struct Pass {
  std::size_t layer = 0;
  Event event = Event::decode;
  const Tokens* tokens = nullptr;
  Rows<float> out = {};
  std::span<float> lse = {};                 ///< [tokens, query_heads], or nobody wants it
  std::span<const Position> positions = {};  ///< where the tokens stand in the text
  Position probe_begin = 0, probe_end = 0;
  Executor* executor = nullptr;
  bool acts_later = false;  ///< policies act after a later pass of the same call
  bool draft = false;       ///< rows go behind all others, and policies do not look before accept()

  std::size_t count() const { return tokens->k.count; }
};

}  // namespace kvc::inline KVC_ABI::cache
