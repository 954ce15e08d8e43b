#include "support/naive_pair.hpp"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kvc/error.hpp"
#include "kvc/storage/row_store.hpp"
#include "support/session_bytes.hpp"

namespace support {

namespace {

void expect(bool holds, const char* what) {
  if (!holds) throw Mismatch(what);
}

template <class Got, class Expected>
void expect_close(const Got& got, const Expected& expected, const char* what) {
  const double distance = naive::distance(got, expected);
  if (!(distance < Tolerance))
    throw Mismatch(std::string(what) + " are " + std::to_string(distance) + " from the model's");
}

kvc::Streams streams_of(const kvc::CacheCore& cache) {
  for (const auto& stage : cache.stages())
    if (stage->verbs().quantize) return stage->quantize({}, {});
  return {};
}
kvc::Scalar dense_of(const kvc::Streams& streams) {
  if (streams.key.format && streams.key.format->get_if<kvc::Dense>())
    return streams.key.format->get_if<kvc::Dense>()->type;
  return Exact.dense.type;
}

}  // namespace

NaivePair::NaivePair(const kvc::CacheShape& shape, const PolicyCase& entry)
    : entry_(&entry), cache_(new Cache(shape, entry.policy(), Exact)), model_(new_model()) {}

naive::Cache NaivePair::new_model() const {
  const kvc::Streams streams = streams_of(*cache_);
  naive::Cache model(shape(), streams, dense_of(streams));
  model.keep = entry_->keep;
  model.select = entry_->select;
  model.farewell = entry_->farewell;
  for (const auto& stage : cache_->stages()) {
    if (stage->verbs().merge) model.merging = naive::Merging{};
    model.in_cache |= stage->positions() == kvc::Positions::in_cache;
  }
  return model;
}

bool NaivePair::seals() const {
  return cache_->key_rows({0, 0}).seals() || cache_->value_rows({0, 0}).seals();
}

void NaivePair::feed(const LayeredTokens::Slice& slice, kvc::Event event) {
  if (event == kvc::Event::prompt_end && wants_probe(*cache_)) {
    feed(slice, kvc::Event::prompt_chunk);
    if (slice.count != 0) probe(slice);
    return compress();
  }
  // Some policies look at all layers before they act on the first.
  const bool waits = std::ranges::any_of(cache_->stages(), [](const auto& stage) { return stage->verbs().waits(); });
  for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
    const kvc::Tokens tokens = slice.of(layer);
    Outputs out(shape(), slice.count);
    if (event == kvc::Event::decode)
      cache_->decode(layer, tokens, out.rows(0, slice.count));
    else
      cache_->prefill(layer, tokens, out.rows(0, slice.count), event == kvc::Event::prompt_end);
    expect_close(out.values(), answers_of_model(layer, tokens, event), "outputs of new tokens");
    if (!waits) act(layer, event);
  }
  for (std::uint32_t layer = 0; waits && layer < shape().layers; ++layer) act(layer, event);
}

std::vector<double> NaivePair::answers_of_model(std::size_t layer, const kvc::Tokens& tokens, kvc::Event event) {
  if (event != kvc::Event::decode || !model_.select) {
    model_.append(layer, tokens);
    return model_.attend_appended(layer, tokens.q, event);
  }
  std::vector<double> all;
  for (std::size_t t = 0; t < tokens.q.count; ++t) {
    model_.append(layer, model_.one_of(tokens, t));
    const std::vector<double> one = model_.attend_appended(layer, tokens.q.subrows(t, 1), event);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}

void NaivePair::draft(const LayeredTokens::Slice& slice) {
  for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
    const kvc::Tokens tokens = slice.of(layer);
    Outputs out(shape(), slice.count);
    cache_->draft(layer, tokens, out.rows(0, slice.count));
    expect_close(out.values(), model_.draft(layer, tokens), "outputs of drafted tokens");
  }
}

void NaivePair::accept(std::size_t count) {
  cache_->accept(count);
  for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
    model_.accept(layer, count);
    if (count != 0) act(layer, kvc::Event::decode);
  }
}

void NaivePair::compress() {
  cache_->compress();
  for (std::uint32_t layer = 0; layer < shape().layers; ++layer) act(layer, kvc::Event::prompt_end);
}

void NaivePair::make_room(std::size_t tokens) {
  cache_->make_room(tokens);
  for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
    for (std::uint32_t head = 0; head < shape().kv_heads; ++head) follow({layer, head});
    model_.end_pass(layer, kvc::Event::make_room);
  }
}

void NaivePair::truncate(kvc::Position from) {
  // Which sealed rows are left dead where a group is cut is storage's own affair: modelled only where nothing is cut.
  NaivePair trial = fork();
  if (!trial.cache_->truncate(from) && seals()) return;
  static_cast<void>(cache_->truncate(from));
  model_.truncate(from);
  for (const kvc::HeadId id : Sequence::heads(shape())) check_positions(id);
}

void NaivePair::remove(kvc::Position first, kvc::Position last) {
  if (last >= next()) return truncate(first);
  cache_->remove(first, last);
  model_.remove(first, last);
  for (const kvc::HeadId id : Sequence::heads(shape())) check_positions(id);
}

void NaivePair::shift(kvc::Position first, kvc::Position last, kvc::Position delta) {
  bool refused = false;
  try {
    cache_->shift(first, last, delta);
  } catch (const kvc::Error& error) {
    expect(error.code() == kvc::ErrorCode::invalid_argument, error.what());
    refused = true;
  }
  expect(refused != model_.can_shift(first, last, delta), refused ? "a shift was refused" : "a shift was not refused");
  if (!refused) model_.shift(first, last, delta);
  expect(cache_->next_position() == next(), "the next position differs from the model's");
  for (const kvc::HeadId id : Sequence::heads(shape())) check_positions(id);
}

void NaivePair::attend(const LayeredTokens::Slice& slice) {
  const kvc::Tokens tokens = slice.of(1);
  Outputs out(shape(), 1);
  cache_->attend(1, tokens.q, out.rows(0, 1));
  std::vector<double> expected;
  for (std::size_t q = 0; q < shape().query_heads; ++q) {
    const naive::Head& head = model_.head(1, q / shape().group());
    const double shift = double(head.size()) - double(model_.next_position(1));
    const auto sinks = shape().sink_logits(1);
    const auto answer = model_.attend_one(head, model_.query(tokens.q[0], q), head.size(), shift,
                                          model_.in_window(1, head, model_.next_position(1), {}),
                                          sinks.empty() ? -HUGE_VAL : double(sinks[q]));
    expected.insert(expected.end(), answer.out.begin(), answer.out.end());
  }
  expect_close(out.values(), expected, "outputs of a query alone");
}

void NaivePair::probe(const LayeredTokens::Slice& slice) {
  const naive::Cache::Select selector = std::exchange(model_.select, nullptr);  // a probe asks about all slots
  for (std::uint32_t layer = 0; layer < shape().layers; ++layer) {
    const kvc::Tokens tokens = slice.of(layer);
    Outputs out(shape(), slice.count);
    cache_->probe(layer, tokens, out.rows(0, slice.count), 0, next());
    expect_close(out.values(), model_.draft(layer, tokens), "outputs of a probe");
    model_.accept(layer, 0);
  }
  model_.select = selector;
}

void NaivePair::clear() {
  cache_->clear();
  model_ = new_model();
}

void NaivePair::save_and_load() {
  Bytes session;
  try {
    session = saved(*cache_);
  } catch (const kvc::Error& error) {
    expect(error.code() == kvc::ErrorCode::invalid_argument, error.what());
    return;
  }
  auto loaded = std::make_unique<Cache>(shape(), entry_->policy(), Exact);
  load_from(*loaded, session);
  expect(saved(*loaded) == session, "a session of what was loaded is another");
  cache_ = std::move(loaded);
}

void NaivePair::check_rows() const {
  for (const kvc::HeadId id : Sequence::heads(shape())) {
    const naive::Head head = model_.read(id.layer, id.head);
    std::vector<float> keys(head.size() * shape().head_dim), values(head.size() * shape().values_dim());
    cache_->gather(id, {keys.data(), head.size(), shape().head_dim},
                   {values.data(), head.size(), shape().values_dim()});
    std::vector<double> all_keys, all_values;
    for (const naive::Slot& slot : head) {
      all_keys.insert(all_keys.end(), slot.key.values.begin(), slot.key.values.end());
      all_values.insert(all_values.end(), slot.value.values.begin(), slot.value.values.end());
    }
    expect_close(keys, all_keys, "keys");
    expect_close(values, all_values, "values");
  }
}

void NaivePair::act(std::uint32_t layer, kvc::Event event) {
  model_.slide(layer);
  for (std::uint32_t head = 0; head < shape().kv_heads; ++head) {
    const kvc::HeadId id{layer, head};
    if (!entry_->keep) {
      follow(id);
      continue;
    }
    model_.evict(layer, head, entry_->keep(model_.read(layer, head), event));
    check_positions(id);
  }
  model_.end_pass(layer, event);
}

void NaivePair::follow(kvc::HeadId id) {
  const std::vector<kvc::Position> kept = cache_->positions(id);
  std::vector<bool> stays;
  for (const naive::Slot& slot : model_.head(id.layer, id.head))
    stays.push_back(std::binary_search(kept.begin(), kept.end(), slot.position));
  expect(std::size_t(std::count(stays.begin(), stays.end(), true)) == kept.size(), "a slot that nobody appended");
  model_.evict(id.layer, id.head, stays);
}

void NaivePair::check_positions(kvc::HeadId id) const {
  expect(cache_->positions(id) == naive::positions_of(model_.head(id.layer, id.head)),
         "positions differ from the model's");
}

}  // namespace support
