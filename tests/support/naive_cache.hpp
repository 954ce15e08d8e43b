#pragma once
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "kvc/policy/head.hpp"
#include "kvc/shape.hpp"
#include "support/naive_merge.hpp"

/// The cache of the architecture in the plainest form: every head is a vector of slots, everything is computed again for
/// every token, in double precision.
namespace naive {

/// Turns a row by `delta` positions.
Row turned(Row row, const kvc::Rotary& rotary, double delta);

/// The model of one sequence.
class Cache {
 public:
  /// Which slots stay after a pass.
  using Keep = std::function<std::vector<bool>(const Head&, kvc::Event)>;
  /// Which slots the queries of a group attend to while decoding; empty: all.
  using Select = std::function<std::vector<bool>(std::size_t layer, const Head&, const std::vector<Row>& queries)>;

  Cache(const kvc::CacheShape& shape, const kvc::Streams& streams, kvc::Scalar dense)
      : shape_(shape),
        streams_(streams),
        dense_(dense),
        heads_(shape.heads()),
        blocks_(shape.heads()),
        attention_(shape.heads()),
        drafts_(shape.layers),
        next_(shape.layers),
        merged_until_(shape.layers) {}

  /// What becomes of slots that go; it may rewrite those that stay.
  using Farewell = std::function<void(Head&, const std::vector<bool>& stays)>;

  Keep keep = nullptr;
  Select select = nullptr;
  Farewell farewell = nullptr;
  std::optional<Merging> merging = std::nullopt;  ///< of layers 0 and 1, 2 and 3, …
  bool in_cache = false;

  /// Appends, attends causally, evicts, seals. Returns the outputs [tokens, query_heads * value_dim].
  std::vector<double> pass(std::size_t layer, const kvc::Tokens& tokens, kvc::Event event);
  /// Appends and attends; nothing is learnt or evicted before accept().
  std::vector<double> draft(std::size_t layer, const kvc::Tokens& tokens);
  /// Token t of several.
  kvc::Tokens one_of(const kvc::Tokens& tokens, std::size_t t) const;
  /// Keeps the first `count` drafted tokens of a layer, which are learnt from now.
  void accept(std::size_t layer, std::size_t count);
  void append(std::size_t layer, const kvc::Tokens& tokens);
  /// Attention of the newest tokens, each over itself and what came before it, which slots remember.
  std::vector<double> attend_appended(std::size_t layer, kvc::ConstRows queries,
                                      kvc::Event event = kvc::Event::prompt_end);
  void act(std::size_t layer, kvc::Event event);
  /// Lets go of what no later query sees.
  void slide(std::size_t layer);
  /// What follows the evictions from a layer: layers merge, rows are sealed, the queries of a prompt forgotten.
  void end_pass(std::size_t layer, kvc::Event event);
  void evict(std::size_t layer, std::size_t h, const std::vector<bool>& stays);
  void truncate(kvc::Position from);
  /// Forgets the tokens at positions [first, last), behind which there are others.
  void remove(kvc::Position first, kvc::Position last);

  /// Whether the tokens at positions [first, last) can move by `delta` and stay between those that they stand between.
  bool can_shift(kvc::Position first, kvc::Position last, kvc::Position delta) const;
  void shift(kvc::Position first, kvc::Position last, kvc::Position delta);

  struct Answer {
    Row out;
    double lse;
    Row probabilities;
  };
  /// Attention over the first `visible` slots, optionally only over those selected. `shift`: the query's slot minus its
  /// position, for in-cache positions. `sink`: a logit without a value.
  Answer attend_one(const Head& slots, const Row& query, std::size_t visible, double shift,
                    const std::vector<bool>& selected = {}, double sink = -HUGE_VAL) const;
  /// Which of the slots that are selected, or of all, stand in the window of a query at `position`; empty: all.
  std::vector<bool> in_window(std::size_t layer, const Head& slots, kvc::Position position,
                              std::vector<bool> selected) const;
  Row query(std::span<const float> row, std::size_t query_head) const { return part(row, query_head, shape_.head_dim); }

  Head& head(std::size_t layer, std::size_t h) { return heads_[index(layer, h)]; }
  const Head& head(std::size_t layer, std::size_t h) const { return heads_[index(layer, h)]; }
  /// Probabilities of the last pass, [tokens * group] rows of [slots before eviction].
  const std::vector<Row>& attention(std::size_t layer, std::size_t h) const { return attention_[index(layer, h)]; }
  /// A head whose keys are turned for the positions where they stand.
  Head read(std::size_t layer, std::size_t h) const { return turned_by(1, head(layer, h)); }
  kvc::Position next_position(std::size_t layer) const { return next_[layer]; }
  /// The sealed blocks of a head's keys and values.
  const std::pair<Blocks, Blocks>& blocks(std::size_t layer, std::size_t h) const { return blocks_[index(layer, h)]; }

 private:
  std::size_t index(std::size_t layer, std::size_t h) const { return layer * shape_.kv_heads + h; }
  static Row part(std::span<const float> row, std::size_t number, std::size_t dim);
  std::vector<Stored*> stored(std::size_t layer, std::size_t h, Stored Slot::*side);
  /// The keys turned by `sign` times what they are to be turned.
  Head turned_by(double sign, Head head) const;
  /// The slots that stay; what is left in blocks that are mostly dead then is dense.
  void drop(std::size_t layer, std::size_t h, const std::vector<bool>& stays);
  /// Only the slots that stay are left. Returns whether any went.
  bool leave(std::size_t layer, std::size_t h, const std::vector<bool>& stays);
  /// Outputs of the newest tokens; leaves every query's probabilities in attention_.
  std::vector<double> answers(std::size_t layer, kvc::ConstRows queries, const Select& chosen);
  void seal(std::size_t layer, kvc::Event event);
  void merge(std::size_t layer);

  kvc::CacheShape shape_;
  kvc::Streams streams_;
  kvc::Scalar dense_;
  std::vector<Head> heads_;
  std::vector<std::pair<Blocks, Blocks>> blocks_;  // of keys and values
  std::vector<std::vector<Row>> attention_;
  std::vector<std::vector<std::vector<float>>> drafts_;  // queries of each layer's drafted tokens
  std::vector<kvc::Position> next_, merged_until_;
};

/// The largest difference between two lists of numbers; infinite if their lengths differ or one is not finite.
template <class A, class B>
double distance(const A& got, const B& expected) {
  if (got.size() != expected.size()) return HUGE_VAL;
  double worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double here = std::fabs(double(got[i]) - double(expected[i]));
    worst = here <= worst ? worst : (here > worst ? here : HUGE_VAL);
  }
  return worst;
}

}  // namespace naive
