// Policies that say how rows are held.
#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/all.hpp"
#include "kvc/rotary.hpp"
#include "literature/hadamard.hpp"
#include "literature/importance_tiers.hpp"
#include "literature/nf4.hpp"
#include "literature/pre_rotary.hpp"
#include "literature/trial.hpp"
#include "support/fake_head.hpp"

using namespace literature;

namespace {

/// Keys of one head under a model whose channels have large means before the rotary embedding.
class RotatedKeys {
 public:
  static constexpr std::size_t Dim = 32, Count = 500;
  const CacheShape shape{.query_heads = 1, .kv_heads = 1, .head_dim = Dim, .rotary = Rotary::standard(Dim)};

  RotatedKeys() {
    support::Dice dice(3);
    const std::vector<float> means = dice.row(Dim);
    for (std::size_t t = 0; t < Count; ++t) {
      std::vector<float> row = dice.row(Dim);
      for (std::size_t c = 0; c < Dim; ++c) row[c] = 4 * means[c] + 0.3f * row[c];
      rotate(row, shape.rotary, double(t));
      keys_.insert(keys_.end(), row.begin(), row.end());
    }
  }
  /// The root mean square error of the keys that a cache under these stages holds after the prompt.
  double error(const Stages& stages) const {
    CacheCore cache(shape, stages);
    const ConstRows rows(keys_.data(), Count, Dim);
    cache.prefill(0, {.q = rows, .k = rows, .v = rows}, {});
    const auto positions = cache.positions({0, 0});
    std::vector<float> keys(positions.size() * Dim), values(keys.size());
    cache.gather({0, 0}, {keys.data(), positions.size(), Dim}, {values.data(), positions.size(), Dim});
    double sum = 0;
    for (std::size_t i = 0; i < keys.size(); ++i)
      sum += std::pow(double(keys[i]) - double(keys_[std::size_t(positions[i / Dim]) * Dim + i % Dim]), 2);
    return std::sqrt(sum / double(keys.size()));
  }

 private:
  std::vector<float> keys_;
};

/// The root mean square of what is wrong with the rows of a head.
double key_error(const CacheCore& cache, HeadId id) {
  const auto positions = cache.positions(id);
  const HeadRows rows = rows_of(cache, id);
  double sum = 0;
  for (std::size_t slot = 0; slot < positions.size(); ++slot)
    for (std::size_t c = 0; c < Small.head_dim; ++c)
      sum += std::pow(double(rows.key(slot)[c]) - double(key_at(id.layer, id.head, positions[slot])[c]), 2);
  return std::sqrt(sum / double(rows.keys.size()));
}

}  // namespace

TEST_CASE("NF4 reads every element back as the nearest of its 16 levels, in 4 bits and a scale for every 32") {
  CacheCore cache(Small, stages_of(Nf4{}));
  feed_prompt(cache);
  const HeadId id{2, 1};
  const HeadRows rows = rows_of(cache, id);
  for (std::size_t slot = 0; slot < PromptTokens; ++slot) {
    const auto value = value_at(id.layer, id.head, Position(slot));
    for (std::size_t begin = 0; begin < Small.value_dim; begin += 32) {
      float scale = 0;
      for (std::size_t c = begin; c < begin + 32; ++c) scale = std::max(scale, std::abs(value[c]));
      scale *= 1.0005f;  // it is rounded to half precision, either way
      double worst = 0;
      for (std::size_t c = begin; c < begin + 32; ++c) {
        const float stored = from_half(to_half(value[c]));
        float nearest = HUGE_VALF;
        for (const float level : Nf4Codec::Levels) nearest = std::min(nearest, std::abs(stored - scale * level));
        worst = std::max(worst, double(std::abs(stored - rows.value(slot)[c]) - nearest));
      }
      CHECK(worst < 0.002 * double(scale));
    }
  }
  CHECK(cache.stats().payload == 8 * PromptTokens * (16 + 2 + 32 + 4));
}

TEST_CASE(
    "Four bits of rows turned by a Hadamard matrix suffer less from a channel of outliers than four bits as they are") {
  support::Dice dice(5);
  const CacheShape shape{.query_heads = 1, .kv_heads = 1, .head_dim = 64};
  std::vector<float> rows = dice.row(200 * 64);
  for (std::size_t t = 0; t < 200; ++t) rows[t * 64 + 7] *= 30;
  const auto error = [&](const Stages& stages) {
    CacheCore cache(shape, stages);
    const ConstRows all(rows.data(), 200, 64);
    cache.prefill(0, {.q = all, .k = all, .v = all}, {});
    std::vector<float> keys(rows.size()), values(rows.size());
    cache.gather({0, 0}, {keys.data(), 200, 64}, {values.data(), 200, 64});
    double sum = 0;
    for (std::size_t i = 0; i < keys.size(); ++i) sum += std::pow(double(keys[i]) - double(rows[i]), 2);
    return std::sqrt(sum / double(keys.size()));
  };
  const double turned = error(stages_of(HadamardQuant{.bits = 4, .group = 64}));
  const double plain = error(stages_of(Full{.bits = 4, .group = 64}));
  INFO("turned " << turned << ", as they are " << plain);
  CHECK(turned < plain / 1.5);
}

TEST_CASE(
    "Keys held as they were before the rotary embedding lose a quarter of what rotated keys lose, evicted ones "
    "between") {
  const RotatedKeys keys;
  const KIVI rotated{.bits = 2, .residual = 32};
  const PreRotary plain{.bits = 2};
  const double after = keys.error(stages_of(rotated)), before = keys.error(stages_of(plain));
  INFO("after " << after << ", before " << before);
  CHECK(before < after / 4);
  const StreamingLLM gap{.budget = 320};
  CHECK(keys.error(stages_of(gap | plain)) < keys.error(stages_of(gap | rotated)) / 4);
}

TEST_CASE("ThinK leaves out the channels with the least energy of the last queries times that of the keys") {
  CacheCore cache(Small, stages_of(ThinK{.pruned = 0.25, .window = 16}));
  feed_prompt(cache, {180, 120});
  for (const HeadId id : heads()) {
    std::vector<double> energy(Small.head_dim);
    for (std::size_t c = 0; c < Small.head_dim; ++c) {
      double keys = 0, queries = 0;
      for (std::size_t t = 0; t < PromptTokens; ++t)
        keys += std::pow(double(key_at(id.layer, id.head, Position(t))[c]), 2);
      for (std::size_t t = PromptTokens - 16; t < PromptTokens; ++t)
        for (std::size_t g = 0; g < Small.group(); ++g)
          queries += std::pow(
              double(text().tokens(id.layer, t, 1).q[0][(id.head * Small.group() + g) * Small.head_dim + c]), 2);
      energy[c] = keys * queries;
    }
    const std::vector<Position> expected = best_positions(energy, 24);
    const HeadRows rows = rows_of(cache, id);
    std::vector<Position> stored;
    bool exact = true;
    for (std::size_t c = 0; c < Small.head_dim; ++c) {
      bool any = false;
      for (std::size_t slot = 0; slot < PromptTokens; ++slot) any |= rows.key(slot)[c] != 0;
      if (any) stored.push_back(Position(c));
      for (std::size_t slot = 0; any && slot < PromptTokens; ++slot)
        exact &= rows.key(slot)[c] == from_half(to_half(key_at(id.layer, id.head, Position(slot))[c]));
    }
    CHECK(stored == expected);
    CHECK(exact);
  }
}

TEST_CASE("ThinK's keys take less room by the share that is pruned, and those of generated tokens keep all channels") {
  CacheCore whole(Small, stages_of(Full{})), thin(Small, stages_of(ThinK{.pruned = 0.5}));
  for (CacheCore* cache : {&whole, &thin}) feed_prompt(*cache);
  const std::size_t keys = 8 * PromptTokens * Small.head_dim * 2;
  CHECK(whole.stats().payload - thin.stats().payload > keys * 45 / 100);
  CHECK(whole.stats().payload - thin.stats().payload < keys * 55 / 100);
  decode(thin);
  for (const HeadId id : heads()) {
    const HeadRows rows = rows_of(thin, id);
    const std::size_t slots = thin.positions(id).size();
    CHECK(std::ranges::count(rows.key(PromptTokens - 1), 0.0f) == 16);
    for (std::size_t slot = PromptTokens; slot < slots; ++slot) CHECK(std::ranges::count(rows.key(slot), 0.0f) == 0);
  }
}

TEST_CASE("ThinK keeps a head's channels for its later prompts, whose end thins what was generated between") {
  CacheCore cache(Small, stages_of(ThinK{.pruned = 0.5}));
  feed_prompt(cache);
  decode(cache);
  for (std::size_t layer = 0; layer < Small.layers; ++layer)
    cache.prefill(layer, text().tokens(layer, PromptTokens + DecodedTokens, DecodedTokens), {});
  for (const HeadId id : heads()) {
    const HeadRows rows = rows_of(cache, id);
    const std::size_t slots = cache.positions(id).size();
    REQUIRE(slots == PromptTokens + 2 * DecodedTokens);
    for (std::size_t c = 0; c < Small.head_dim; ++c) CHECK((rows.key(0)[c] == 0) == (rows.key(slots - 1)[c] == 0));
  }
}

TEST_CASE("Layers have quantizers of their own: eight bits below, KIVI's two above") {
  CacheCore cache(Small, stages_of(PerLayer{Full{.bits = 8}, 0, 1} | PerLayer{KIVI{.bits = 2, .residual = 32}, 2}));
  feed_prompt(cache);
  for (const HeadId id : heads()) {
    INFO("layer " << id.layer);
    const double error = key_error(cache, id);
    if (id.layer < 2)
      CHECK(error < 0.02);
    else
      CHECK(error > 0.2);
  }
  CHECK(cache.stats(0).payload > 2 * cache.stats(3).payload);
}

TEST_CASE("Importance tiers hold the tokens that received most attention in eight bits, and others in two") {
  const ImportanceTiers tiers{.important = 0.25, .recent = 0};
  CacheCore cache(Small, stages_of(tiers));
  for (std::size_t layer = 0; layer < Small.layers; ++layer)
    cache.prefill(layer, text().tokens(layer, 0, PromptTokens), {}, false);
  std::vector<std::vector<Position>> important;
  for (const HeadId id : heads()) {
    std::vector<double> scores;
    for (std::size_t slot = 0; slot < PromptTokens; ++slot)
      scores.push_back(double(cache.slots<ImportanceTiers>(id)[slot].mass / float(PromptTokens - slot)));
    important.push_back(best_positions(scores, PromptTokens / 4));
  }
  cache.compress();
  for (std::size_t head = 0; head < 8; ++head) {
    const HeadId id = heads()[head];
    const HeadRows rows = rows_of(cache, id);
    REQUIRE(cache.positions(id).size() == PromptTokens);
    double worst_important = 0, best_other = HUGE_VAL;
    for (std::size_t slot = 0; slot < PromptTokens; ++slot) {
      double error = 0;
      for (std::size_t c = 0; c < Small.value_dim; ++c)
        error = std::max(
            error, std::abs(double(rows.value(slot)[c]) - double(value_at(id.layer, id.head, Position(slot))[c])));
      if (std::ranges::binary_search(important[head], Position(slot)))
        worst_important = std::max(worst_important, error);
      else
        best_other = std::min(best_other, error);
    }
    CHECK(worst_important < 0.03);
    CHECK(best_other > 0.1);
  }
  const auto payload = [](const Stages& stages) {
    CacheCore other(Small, stages);
    feed_prompt(other);
    return double(other.stats().payload);
  };
  const double mixed = payload(stages_of(Full{.bits = 2})) * 0.75 + payload(stages_of(Full{.bits = 8})) * 0.25;
  CHECK(std::abs(double(cache.stats().payload) / mixed - 1) < 0.05);
}
