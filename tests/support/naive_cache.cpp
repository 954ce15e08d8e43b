#include "support/naive_cache.hpp"

namespace naive {

Row turned(Row row, const kvc::Rotary& rotary, double delta) {
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

std::vector<double> Cache::pass(std::size_t layer, const kvc::Tokens& tokens, kvc::Event event) {
  append(layer, tokens);
  const std::vector<double> out = attend_appended(layer, tokens.q, event);
  act(layer, event);
  return out;
}

std::vector<double> Cache::draft(std::size_t layer, const kvc::Tokens& tokens) {
  for (std::size_t t = 0; t < tokens.q.count; ++t) drafts_[layer].emplace_back(tokens.q[t].begin(), tokens.q[t].end());
  std::vector<double> out;
  for (std::size_t t = 0; t < tokens.q.count; ++t) {
    append(layer, one_of(tokens, t));
    const std::vector<double> row = answers(layer, tokens.q.subrows(t, 1), select);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

kvc::Tokens Cache::one_of(const kvc::Tokens& tokens, std::size_t t) const {
  kvc::Tokens one{.q = tokens.q.subrows(t, 1), .k = tokens.k.subrows(t, 1), .v = tokens.v.subrows(t, 1)};
  if (!tokens.scores.empty()) one.scores = tokens.scores.subspan(t * shape_.kv_heads, shape_.kv_heads);
  if (!tokens.positions.empty()) one.positions = tokens.positions.subspan(t, 1);
  return one;
}

void Cache::accept(std::size_t layer, std::size_t count) {
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

void Cache::append(std::size_t layer, const kvc::Tokens& tokens) {
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

std::vector<double> Cache::attend_appended(std::size_t layer, kvc::ConstRows queries, kvc::Event event) {
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

void Cache::act(std::size_t layer, kvc::Event event) {
  slide(layer);
  if (keep)
    for (std::size_t h = 0; h < shape_.kv_heads; ++h) evict(layer, h, keep(read(layer, h), event));
  end_pass(layer, event);
}

void Cache::slide(std::size_t layer) {
  if (shape_.window(layer) == 0) return;
  for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
    leave(layer, h, in_window(layer, head(layer, h), next_[layer], {}));
    auto& [keys, values] = blocks_[index(layer, h)];
    keys.forget_dead(stored(layer, h, &Slot::key));
    values.forget_dead(stored(layer, h, &Slot::value));
  }
}

void Cache::end_pass(std::size_t layer, kvc::Event event) {
  if (event == kvc::Event::prompt_chunk) return;
  for (std::size_t h = 0; h < shape_.kv_heads; ++h)
    for (Slot& slot : head(layer, h)) slot.received.clear();
  const bool upper = layer % 2 == 1, paired = merging && (upper || layer + 1 < shape_.layers);
  if (!paired) return seal(layer, event);
  const bool due = event != kvc::Event::decode || next_[layer] - merged_until_[layer] >= 64;
  if (!upper || !due) return;
  merge(layer);
  seal(layer - 1, event);
  seal(layer, event);
}

void Cache::evict(std::size_t layer, std::size_t h, const std::vector<bool>& stays) {
  if (farewell) {
    Head leaving = read(layer, h);
    farewell(leaving, stays);
    head(layer, h) = turned_by(-1, leaving);
  }
  drop(layer, h, stays);
}

void Cache::drop(std::size_t layer, std::size_t h, const std::vector<bool>& stays) {
  if (!leave(layer, h, stays)) return;
  auto& [keys, values] = blocks_[index(layer, h)];
  keys.release(stored(layer, h, &Slot::key));
  values.release(stored(layer, h, &Slot::value));
}

bool Cache::leave(std::size_t layer, std::size_t h, const std::vector<bool>& stays) {
  Head kept;
  for (std::size_t slot = 0; slot < stays.size(); ++slot)
    if (stays[slot]) kept.push_back(head(layer, h)[slot]);
  if (kept.size() == stays.size()) return false;
  head(layer, h) = kept;
  return true;
}

void Cache::truncate(kvc::Position from) {
  for (Head& slots : heads_)
    while (!slots.empty() && slots.back().position >= from) slots.pop_back();
  for (kvc::Position& next : next_) next = std::min(next, from);
  for (kvc::Position& until : merged_until_) until = std::min(until, from);
}

void Cache::remove(kvc::Position first, kvc::Position last) {
  for (std::size_t layer = 0; layer < shape_.layers; ++layer)
    for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
      std::vector<bool> stays;
      for (const Slot& slot : head(layer, h)) stays.push_back(slot.position < first || slot.position >= last);
      drop(layer, h, stays);
    }
}

Head Cache::turned_by(double sign, Head head) const {
  for (Slot& slot : head)
    if (slot.turn != 0) slot.key.values = turned(slot.key.values, shape_.rotary, sign * slot.turn);
  return head;
}

bool Cache::can_shift(kvc::Position first, kvc::Position last, kvc::Position delta) const {
  if (first >= std::min(last, next_[0])) return true;  // there is nothing to move
  const bool tail = last >= next_[0];
  const kvc::Position next = tail ? next_[0] + delta : next_[0];
  for (const Head& slots : heads_) {
    kvc::Position before = -1;
    for (const Slot& slot : slots) {
      const kvc::Position at = slot.position + (slot.position >= first && slot.position < last ? delta : 0);
      if (at <= before || at >= next) return false;
      before = at;
    }
  }
  return next >= 0;
}

void Cache::shift(kvc::Position first, kvc::Position last, kvc::Position delta) {
  const bool tail = last >= next_[0];
  last = std::min(last, next_[0]);
  for (Head& slots : heads_)
    for (Slot& slot : slots)
      if (slot.position >= first && slot.position < last) {
        slot.position += delta;
        slot.turn += delta;
        if (!slot.key_sum.empty()) slot.key_sum = turned(slot.key_sum, shape_.rotary, delta);
      }
  for (std::size_t layer = 0; layer < shape_.layers; ++layer) {
    kvc::Position& until = merged_until_[layer];
    if (until <= first)
      until = std::max(0, std::min(until, first + delta));
    else
      until = until <= last ? until + delta : std::max(until, last + delta);
    if (tail && next_[layer] > first) next_[layer] += delta;
    until = std::min(until, next_[layer]);
  }
}

Cache::Answer Cache::attend_one(const Head& slots, const Row& query, std::size_t visible, double shift,
                                const std::vector<bool>& selected, double sink) const {
  constexpr double Nothing = -std::numeric_limits<double>::infinity();
  const double scale = shape_.scale > 0 ? double(shape_.scale) : 1 / std::sqrt(double(shape_.head_dim));
  Row logits(slots.size(), Nothing);
  const Row placed = in_cache ? turned(query, shape_.rotary, shift) : query;
  for (std::size_t slot = 0; slot < visible; ++slot) {
    if (!selected.empty() && !selected[slot]) continue;
    const Row& stored = slots[slot].key.values;
    const double wanted = in_cache ? double(slot) - slots[slot].position : 0;
    const Row key =
        in_cache || slots[slot].turn != 0 ? turned(stored, shape_.rotary, wanted + slots[slot].turn) : stored;
    double sum = 0;
    for (std::size_t c = 0; c < key.size(); ++c) sum += placed[c] * key[c];
    sum *= scale;
    if (shape_.softcap > 0) sum = double(shape_.softcap) * std::tanh(sum / double(shape_.softcap));
    logits[slot] = sum + std::log(slots[slot].multiplicity);
  }
  double maximum = sink, total = 0;
  for (const double logit : logits) maximum = std::max(maximum, logit);
  Answer answer{Row(shape_.values_dim()), Nothing, Row(slots.size())};
  if (maximum == Nothing) return answer;
  total += std::exp(sink - maximum);
  for (const double logit : logits) total += std::exp(logit - maximum);
  answer.lse = maximum + std::log(total);
  for (std::size_t slot = 0; slot < slots.size(); ++slot) {
    answer.probabilities[slot] = std::exp(logits[slot] - answer.lse);
    for (std::size_t c = 0; c < answer.out.size(); ++c)
      answer.out[c] += answer.probabilities[slot] * slots[slot].value.values[c];
  }
  return answer;
}

std::vector<bool> Cache::in_window(std::size_t layer, const Head& slots, kvc::Position position,
                                   std::vector<bool> selected) const {
  if (shape_.window(layer) == 0) return selected;
  if (selected.empty()) selected.assign(slots.size(), true);
  for (std::size_t slot = 0; slot < slots.size(); ++slot)
    if (slots[slot].position <= position - shape_.window(layer)) selected[slot] = false;
  return selected;
}

Row Cache::part(std::span<const float> row, std::size_t number, std::size_t dim) {
  const auto from = row.begin() + std::ptrdiff_t(number * dim);
  return Row(from, from + std::ptrdiff_t(dim));
}

std::vector<Stored*> Cache::stored(std::size_t layer, std::size_t h, Stored Slot::*side) {
  std::vector<Stored*> rows;
  for (Slot& slot : head(layer, h)) rows.push_back(&(slot.*side));
  return rows;
}

std::vector<double> Cache::answers(std::size_t layer, kvc::ConstRows queries, const Select& chosen) {
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
                     in_window(layer, slots, slots[at].position,
                               chosen ? chosen(layer, read(layer, h), group) : std::vector<bool>{}),
                     shape_.sink_logits(layer).empty() ? -HUGE_VAL : double(shape_.sink_logits(layer)[q]));
      out.insert(out.end(), row.begin(), row.end());
      attention_[index(layer, h)].push_back(probabilities);
    }
  return out;
}

void Cache::seal(std::size_t layer, kvc::Event event) {
  for (std::size_t h = 0; h < shape_.kv_heads; ++h) {
    auto& [keys, values] = blocks_[index(layer, h)];
    seal_oldest(stored(layer, h, &Slot::key), streams_.key, keys, event == kvc::Event::prompt_end);
    seal_oldest(stored(layer, h, &Slot::value), streams_.value, values, event == kvc::Event::prompt_end);
  }
}

void Cache::merge(std::size_t layer) {
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

}  // namespace naive
