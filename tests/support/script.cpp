#include "support/script.hpp"

#include <algorithm>
#include <utility>

#include "kvc/policies/ada_kv.hpp"
#include "kvc/policies/external_scores.hpp"
#include "kvc/policies/h2o.hpp"
#include "kvc/shape.hpp"

namespace support {

namespace {

/// Writes a script one call after another. Each call is of one layer, as engines make them.
class Writer {
 public:
  Writer(const LayeredTokens& text, std::size_t layers) : text_(&text), layers_(layers) {}

  void call(std::string name, std::function<void(World&)> run) { steps_.push_back({std::move(name), std::move(run)}); }

  void prefill(std::size_t count, bool last_part) {
    each_layer(last_part ? "the last part of a prompt" : "a part of a prompt", count,
               [=](World& world, std::size_t layer, const kvc::Tokens& tokens) {
                 world.cache().prefill(layer, tokens, world.room(count), last_part);
               });
  }
  void decode(std::size_t count = 1) {
    each_layer("decode", count, [=](World& world, std::size_t layer, const kvc::Tokens& tokens) {
      world.cache().decode(layer, tokens, world.room(count));
    });
  }
  void draft(std::size_t count) {
    each_layer("draft", count, [=](World& world, std::size_t layer, const kvc::Tokens& tokens) {
      world.cache().draft(layer, tokens, world.room(count));
    });
  }
  void accept(std::size_t count) {
    call("accept " + std::to_string(count), [=](World& world) { world.cache().accept(count); });
  }
  void probe(std::size_t count) {
    each_layer("probe", count, [=](World& world, std::size_t layer, const kvc::Tokens& tokens) {
      world.cache().probe(layer, tokens, world.room(count), 0, 20);
    });
  }
  /// One token for each of the two newest sequences.
  void batch(kvc::Executor& executor) {
    each_layer("decode_batch", 2, [&executor](World& world, std::size_t layer, const kvc::Tokens& tokens) {
      kvc::CacheCore* const pair[] = {&world.caches.end()[-2], &world.caches.end()[-1]};
      kvc::decode_batch(pair, layer, tokens, world.room(2), executor);
    });
  }
  std::vector<Step> steps() && { return std::move(steps_); }

 private:
  void each_layer(const char* name, std::size_t count,
                  std::function<void(World&, std::size_t, const kvc::Tokens&)> run) {
    for (std::size_t layer = 0; layer < layers_; ++layer)
      call(name + std::string(" in layer ") + std::to_string(layer),
           [=, tokens = text_->tokens(layer, at_, count)](World& world) { run(world, layer, tokens); });
    at_ += count;
  }

  const LayeredTokens* text_;
  std::size_t layers_, at_ = 0;
  std::vector<Step> steps_;
};

}  // namespace

World::World(const kvc::CacheShape& shape, const kvc::Stages& stages, const kvc::CacheOptions& options,
             std::size_t tokens)
    : out(tokens * shape.query_heads * shape.values_dim()) {
  caches.reserve(4);
  caches.emplace_back(shape, stages, options);
}

kvc::Rows<float> World::room(std::size_t count) {
  const std::size_t dim = cache().shape().query_heads * cache().shape().values_dim();
  return {out.data(), count, dim};
}

std::vector<Step> whole_script(const LayeredTokens& text, kvc::Executor& executor, bool compresses) {
  Writer write(text, 2);
  write.prefill(30, false);
  write.prefill(1, false);
  write.prefill(39, true);
  for (int step = 0; step < 6; ++step) write.decode();
  write.call("fork", [](World& world) { world.caches.push_back(world.cache().fork()); });
  for (int step = 0; step < 4; ++step) write.decode();
  write.draft(3);
  write.accept(2);
  write.draft(2);
  write.accept(0);
  write.call("truncate by one", [](World& world) { static_cast<void>(world.cache().truncate(81)); });
  write.decode(2);
  write.prefill(20, true);  // the next turn of a conversation
  write.call("remove some in the middle", [](World& world) { world.cache().remove(60, 75); });
  write.call("shift what is behind them", [](World& world) { world.cache().shift(75, 1000, -15); });
  write.batch(executor);
  write.batch(executor);
  for (int step = 0; step < 34; ++step) write.decode();  // layers merge, groups are sealed
  write.call("make_room", [](World& world) { world.cache().make_room(5); });
  write.decode();
  write.call("reserve", [](World& world) { world.cache().reserve(400); });
  write.prefill(10, false);
  write.probe(4);
  write.prefill(5, true);
  if (compresses) write.call("compress", [](World& world) { world.cache().compress(); });
  write.decode();
  write.call("truncate far back", [](World& world) { static_cast<void>(world.cache().truncate(40)); });
  write.decode();
  write.call("clear", [](World& world) { world.cache().clear(); });
  write.prefill(20, true);
  write.decode();
  return std::move(write).steps();
}

namespace {

void add_stats(std::vector<std::size_t>& numbers, const kvc::Stats& stats) {
  numbers.insert(numbers.end(), {stats.seen, stats.slots, stats.dead, stats.payload, stats.dense_bytes});
}

/// What policy P keeps for each slot, if it is a stage of this cache.
template <class P>
void add_slots(std::vector<unsigned char>& bytes, const kvc::CacheCore& cache, kvc::HeadId id) {
  for (const auto& stage : cache.stages())
    if (stage->type() == kvc::type_of<P>()) {
      for (const std::byte byte : std::as_bytes(cache.template slots<P>(id)))
        bytes.push_back(static_cast<unsigned char>(byte));
    }
}

}  // namespace

Picture picture_of(const kvc::CacheCore& cache) {
  Picture picture;
  const kvc::CacheShape& shape = cache.shape();
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer)
    for (std::uint32_t head = 0; head < shape.kv_heads; ++head) {
      const kvc::HeadId id{layer, head};
      const std::vector<kvc::Position> positions = cache.positions(id);
      for (const kvc::Position position : positions) picture.numbers.push_back(static_cast<std::size_t>(position));
      add_stats(picture.numbers, cache.stats(id));
      const std::size_t slots = positions.size(), before = picture.rows.size();
      picture.rows.resize(before + slots * (shape.head_dim + shape.values_dim()));
      float* const keys = picture.rows.data() + before;
      cache.gather(id, {keys, slots, shape.head_dim}, {keys + slots * shape.head_dim, slots, shape.values_dim()});
      add_slots<kvc::H2O>(picture.slots, cache, id);
      add_slots<kvc::ExternalScores>(picture.slots, cache, id);
    }
  add_stats(picture.numbers, cache.stats());
  return picture;
}

std::vector<Picture> pictures_of(const World& world) {
  std::vector<Picture> pictures;
  for (const auto& cache : world.caches) pictures.push_back(picture_of(cache));
  return pictures;
}

std::string difference(const std::vector<Picture>& got, const std::vector<Picture>& expected) {
  if (got.size() != expected.size()) return "the number of sequences";
  for (std::size_t i = 0; i < got.size(); ++i) {
    const auto differs = [&](const auto& a, const auto& b, const char* what) {
      if (a == b) return std::string();
      const std::size_t shared = std::min(a.size(), b.size());
      std::size_t at = 0;
      while (at < shared && a[at] == b[at]) ++at;
      std::string words = std::string(what) + " of sequence " + std::to_string(i) + ": ";
      if (at == shared) return words + std::to_string(a.size()) + " of them, expected " + std::to_string(b.size());
      return words + "number " + std::to_string(at) + " is " + std::to_string(double(a[at])) + ", expected " +
             std::to_string(double(b[at]));
    };
    for (const std::string& words : {differs(got[i].numbers, expected[i].numbers, "positions or statistics"),
                                     differs(got[i].rows, expected[i].rows, "keys or values"),
                                     differs(got[i].slots, expected[i].slots, "slots of a policy")})
      if (!words.empty()) return words;
  }
  return "";
}

}  // namespace support
