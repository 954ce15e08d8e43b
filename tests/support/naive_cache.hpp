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
inline Row turned(Row row, const kvc::Rotary& rotary, double delta) {
  const std::size_t pairs = rotary.inv_freq.size();
  for (std::size_t i = 0; i < pairs; ++i) {
    const double angle = delta * double(rotary.inv_freq[i]);
    double &x = row[rotary.interleaved ? 2 * i : i], &y = row[rotary.interleaved ? 2 * i + 1 : i + pairs];
    const double before = x;
    x = before * std::cos(angle) - y * std::sin(angle);
    y = before * std::sin(angle) + y * std::cos(angle);
  }
  return row;
}

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
  std::vector<double> pass(std::size_t layer, const kvc::Tokens& tokens, kvc::Event event) {
    append(layer, tokens);
    const std::vector<double> out = attend_appended(layer, tokens.q, event);
    act(layer, event);
    return out;
  }
  /// Appends and attends; nothing is learnt or evicted before accept().
  std::vector<double> draft(std::size_t layer, const kvc::Tokens& tokens) {
    for (std::size_t t = 0; t < tokens.q.count; ++t)
      drafts_[layer].emplace_back(tokens.q[t].begin(), tokens.q[t].end());
    std::vector<double> out;
    for (std::size_t t = 0; t < tokens.q.count; ++t) {
      append(layer, one_of(tokens, t));
      const std::vector<double> row = answers(layer, tokens.q.subrows(t, 1), select);
      out.insert(out.end(), row.begin(), row.end());
    }
    return out;
  }
  /// Token t of several.
  kvc::Tokens one_of(const kvc::Tokens& tokens, std::size_t t) const {
    kvc::Tokens one{.q = tokens.q.subrows(t, 1), .k = tokens.k.subrows(t, 1), .v = tokens.v.subrows(t, 1)};
    if (!tokens.scores.empty()) one.scores = tokens.scores.subspan(t * shape_.kv_heads, shape_.kv_heads);
    if (!tokens.positions.empty()) one.positions = tokens.positions.subspan(t, 1);
    return one;
  }
  /// Keeps the first `count` drafted tokens of a layer, which are learnt from now.
  void accept(std::size_t layer, std::size_t count) {
    for (std::size_t rejected = drafts_[layer].size() - count; rejected > 0; --rejected) {
      for (std::size_t h = 0; h < shape_.kv_heads; ++h) head(layer, h).pop_back();
      --next_[layer];
    }
    std::vector<float> queries;
    for (std::size_t t = 0; t < count; ++t)
      queries.insert(queries.end(), drafts_[layer][t].begin(), drafts_[layer][t].end());
    drafts_[layer].clear();
    if (count != 0) attend_appended(layer, {queries.data(), count, queries.size() / count});
  }
  void append(std::size_t layer, const kvc::Tokens& tokens) {
    for (std::size_t t = 0; t < tokens.k.count; ++t) {
      const kvc::Position position = tokens.positions.empty() ? next_[layer] : tokens.positions[t];
      next_[layer] = position + 1;
      for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
        Slot slot{.position = position};
        slot.key.values = part(tokens.k[t], h, shape_.head_dim);
        slot.value.values = part(tokens.v[t], h, shape_.values_dim());
        for (double& x : slot.key.values) x = rounded(dense_, x);
        for (double& x : slot.value.values) x = rounded(dense_, x);
        if (!tokens.scores.empty()) slot.score = tokens.scores[t * shape_.kv_heads + h];
        head(layer, h).push_back(slot);
      }
    }
  }
  /// Attention of the newest tokens, each over itself and what came before it, which slots remember.
  std::vector<double> attend_appended(std::size_t layer, kvc::ConstRows queries,
                                      kvc::Event event = kvc::Event::prompt_end) {
    const bool selects = select && event == kvc::Event::decode && queries.count == 1;
    std::vector<double> out = answers(layer, queries, selects ? select : nullptr);
    for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
      const std::vector<Row>& rows = attention_[index(layer, h)];
      for (std::size_t slot = 0; slot < head(layer, h).size(); ++slot) {
        Slot& learner = head(layer, h)[slot];
        for (std::size_t row = 0; row < rows.size(); ++row) {
          learner.mass += rows[row][slot];
          if (event == kvc::Event::decode) continue;
          if (row % shape_.group() == 0) learner.received.push_back(0);
          learner.received.back() += rows[row][slot];
        }
      }
    }
    return out;
  }
  void act(std::size_t layer, kvc::Event event) {
    if (keep)
      for (std::size_t h = 0; h < shape_.kv_heads; ++h) evict(layer, h, keep(head(layer, h), event));
    end_pass(layer, event);
  }
  /// What follows the evictions from a layer: layers merge, rows are sealed, the queries of a prompt forgotten.
  void end_pass(std::size_t layer, kvc::Event event) {
    if (event == kvc::Event::prompt_chunk) return;
    for (std::size_t h = 0; h < shape_.kv_heads; ++h)
      for (Slot& slot : head(layer, h)) slot.received.clear();
    const bool upper = layer % 2 == 1, paired = merging && (upper || layer + 1 < shape_.layers);
    if (!paired) return seal(layer);
    const bool due = event != kvc::Event::decode || next_[layer] - merged_until_[layer] >= 64;
    if (!upper || !due) return;
    merge(layer);
    seal(layer - 1);
    seal(layer);
  }
  void evict(std::size_t layer, std::size_t h, const std::vector<bool>& stays) {
    if (farewell) farewell(head(layer, h), stays);
    Head kept;
    for (std::size_t slot = 0; slot < stays.size(); ++slot)
      if (stays[slot]) kept.push_back(head(layer, h)[slot]);
    if (kept.size() == stays.size()) return;
    head(layer, h) = kept;
    auto& [keys, values] = blocks_[index(layer, h)];
    keys.release(stored(layer, h, &Slot::key));
    values.release(stored(layer, h, &Slot::value));
  }
  void truncate(kvc::Position from) {
    for (Head& slots : heads_)
      while (!slots.empty() && slots.back().position >= from) slots.pop_back();
    for (kvc::Position& next : next_) next = std::min(next, from);
    for (kvc::Position& until : merged_until_) until = std::min(until, from);
  }

  struct Answer {
    Row out;
    double lse;
    Row probabilities;
  };
  /// Attention over the first `visible` slots, optionally only over those selected. `shift`: the query's slot minus its
  /// position, for in-cache positions.
  Answer attend_one(const Head& slots, const Row& query, std::size_t visible, double shift,
                    const std::vector<bool>& selected = {}) const {
    constexpr double Nothing = -std::numeric_limits<double>::infinity();
    const double scale = shape_.scale > 0 ? double(shape_.scale) : 1 / std::sqrt(double(shape_.head_dim));
    Row logits(slots.size(), Nothing);
    const Row placed = in_cache ? turned(query, shape_.rotary, shift) : query;
    for (std::size_t slot = 0; slot < visible; ++slot) {
      if (!selected.empty() && !selected[slot]) continue;
      const Row& stored = slots[slot].key.values;
      const Row key = in_cache ? turned(stored, shape_.rotary, double(slot) - slots[slot].position) : stored;
      double sum = 0;
      for (std::size_t c = 0; c < key.size(); ++c) sum += placed[c] * key[c];
      sum *= scale;
      if (shape_.softcap > 0) sum = double(shape_.softcap) * std::tanh(sum / double(shape_.softcap));
      logits[slot] = sum + std::log(slots[slot].multiplicity);
    }
    double maximum = Nothing, total = 0;
    for (const double logit : logits) maximum = std::max(maximum, logit);
    Answer answer{Row(shape_.values_dim()), Nothing, Row(slots.size())};
    if (maximum == Nothing) return answer;
    for (const double logit : logits) total += std::exp(logit - maximum);
    answer.lse = maximum + std::log(total);
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
      answer.probabilities[slot] = std::exp(logits[slot] - answer.lse);
      for (std::size_t c = 0; c < answer.out.size(); ++c)
        answer.out[c] += answer.probabilities[slot] * slots[slot].value.values[c];
    }
    return answer;
  }
  Row query(std::span<const float> row, std::size_t query_head) const { return part(row, query_head, shape_.head_dim); }

  Head& head(std::size_t layer, std::size_t h) { return heads_[index(layer, h)]; }
  const Head& head(std::size_t layer, std::size_t h) const { return heads_[index(layer, h)]; }
  /// Probabilities of the last pass, [tokens * group] rows of [slots before eviction].
  const std::vector<Row>& attention(std::size_t layer, std::size_t h) const { return attention_[index(layer, h)]; }
  kvc::Position next_position(std::size_t layer) const { return next_[layer]; }
  /// The sealed blocks of a head's keys and values.
  const std::pair<Blocks, Blocks>& blocks(std::size_t layer, std::size_t h) const { return blocks_[index(layer, h)]; }

 private:
  std::size_t index(std::size_t layer, std::size_t h) const { return layer * shape_.kv_heads + h; }
  static Row part(std::span<const float> row, std::size_t number, std::size_t dim) {
    const auto from = row.begin() + std::ptrdiff_t(number * dim);
    return Row(from, from + std::ptrdiff_t(dim));
  }
  std::vector<Stored*> stored(std::size_t layer, std::size_t h, Stored Slot::*side) {
    std::vector<Stored*> rows;
    for (Slot& slot : head(layer, h)) rows.push_back(&(slot.*side));
    return rows;
  }
  /// Outputs of the newest tokens; leaves every query's probabilities in attention_.
  std::vector<double> answers(std::size_t layer, kvc::ConstRows queries, const Select& chosen) {
    std::vector<double> out;
    for (std::size_t h = 0; h < shape_.kv_heads; ++h) attention_[index(layer, h)].clear();
    for (std::size_t t = 0; t < queries.count; ++t)
      for (std::size_t q = 0; q < shape_.query_heads; ++q) {
        const std::size_t h = q / shape_.group();
        const Head& slots = head(layer, h);
        const std::size_t at = slots.size() - queries.count + t;
        std::vector<Row> group;
        for (std::size_t member = 0; member < shape_.group(); ++member)
          group.push_back(query(queries[t], h * shape_.group() + member));
        const auto [row, lse, probabilities] =
            attend_one(slots, query(queries[t], q), at + 1, double(at) - slots[at].position,
                       chosen ? chosen(layer, slots, group) : std::vector<bool>{});
        out.insert(out.end(), row.begin(), row.end());
        attention_[index(layer, h)].push_back(probabilities);
      }
    return out;
  }
  void seal(std::size_t layer) {
    for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
      auto& [keys, values] = blocks_[index(layer, h)];
      seal_oldest(stored(layer, h, &Slot::key), streams_.key, keys);
      seal_oldest(stored(layer, h, &Slot::value), streams_.value, values);
    }
  }
  void merge(std::size_t layer) {
    for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
      Head &below = head(layer - 1, h), &here = head(layer, h);
      auto &below_blocks = blocks_[index(layer - 1, h)], &here_blocks = blocks_[index(layer, h)];
      std::size_t first = here.size();
      while (first > 0 && here[first - 1].position >= merged_until_[layer]) --first;
      const auto both = [&](Stored Slot::*side, const kvc::Stream& stream, Blocks& a, Blocks& b) {
        merge_rows(below, here, first, side, stream, *merging, a, b);
      };
      both(&Slot::key, streams_.key, below_blocks.first, here_blocks.first);
      both(&Slot::value, streams_.value, below_blocks.second, here_blocks.second);
    }
    merged_until_[layer] = next_[layer];
  }

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
