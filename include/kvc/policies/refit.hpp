#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kvc/codec/make.hpp"
#include "kvc/half.hpp"
#include "kvc/policies/foresight.hpp"
#include "kvc/policy/competition.hpp"
#include "kvc/policy/head_fit.hpp"
#include "kvc/policy/policy.hpp"
#include "kvc/policy/stage.hpp"
#include "kvc/tiles.hpp"

namespace kvc::inline KVC_ABI {

/// Keeps the tokens that another policy scores highest in the whole cache, quantizes their keys, and then fits what is left to what
/// reference queries found in the whole head: first how many tokens each kept one stands for, then the values, so that they absorb
/// what eviction and the rounding of the keys did; the values' codes are chosen with their errors pushed on. As Attention Matching
/// (arXiv 2602.16284) fits multiplicities and values, over keys that are quantized already and with the replay of KVzip
/// (arXiv 2505.23416) and the prompt's own queries, moved behind it, as references. Needs Eigen; a probe adds its queries to the
/// references. It acts at the end of a prompt. At the end of a later one it fits again, as if the keys that were sealed before were to
/// be sealed anew: what their codes already lost is then fitted, but in other groups than theirs.
struct Refit {
  Member policy = Foresight{};
  Budget budget = 1024;
  unsigned bits = 3;
  std::size_t group = 64;
  std::size_t rows = 1024;
  double ridge = 0.03;
  double least = 0.1, most = 20;

  static constexpr PolicyName name{"refit", "Fits what another policy keeps to the attention of all tokens."};
  static constexpr auto parameters() {
    return list(
        parameter("policy", &Refit::policy, "The policy that scores; its own budget does not count."),
        parameter("budget", &Refit::budget, "Slots of a head, on average over the cache."),
        parameter("bits", &Refit::bits, "Of keys and values, 2, 3, 4 or 8; 16: neither is quantized."),
        parameter("group", &Refit::group, "So many kept tokens share the scale of a channel of keys."),
        parameter("rows", &Refit::rows, "About so many tokens' queries are matched, of the prompt and of probes."),
        parameter("ridge", &Refit::ridge, "What a change costs against a mismatch."),
        parameter("least", &Refit::least, "The fewest tokens that a kept one may stand for."),
        parameter("most", &Refit::most, "The most tokens that a kept one may stand for."));
  }

  struct PromptState {
    ProbeMemory probes;
    std::size_t bytes() const { return sizeof(PromptState) + probes.bytes(); }
  };
  std::span<const Member> members() const { return {&policy, 1}; }
  Needs needs() const { return {.query_stride = 2, .query_most = rows + rows / 2}; }
  void observe(Head<Refit>& head, const Observation& seen) const {
    if (head.prompt) head.prompt->probes.observe(head, seen);
  }
  void score_all(Cache<Refit> heads, ScoreSpans scores) const {
    std::vector<AnyHead> own;
    for (const Head<Refit>& head : heads) own.push_back(head.member(0));
    policy.score(own, scores);
    for (const std::span<float> each : scores)
      if (!each.empty()) each[0] = Protected;
  }
  void allocate_all(Cache<Refit> heads, std::span<std::size_t> budgets) const {
    Competition competition;
    for (std::size_t h = 0; h < heads.size(); ++h) competition.enter(heads[h], budgets[h]);
    competition.share(budgets);
    if (bits != 16) round_to_blocks(heads, budgets);
  }
  void evict(Head<Refit>& head, Plan& plan) const {
    if (!head.acts) return;
    if (head.size() == 0) return;
    if (head.size() > head.budget) keep_best(plan, head.scores, head.budget);
    if (head.prompt && head.reference_queries().positions.size() != 0)
      match(head, plan);
    else if (head.size() > head.budget)
      fail(ErrorCode::missing_feed, "Refit: no query of a prompt is kept; it acts at the end of a prompt only");
  }
  Streams quantize(HeadId, const CacheShape& shape) const {
    if (bits == 16) return {};
    return {.key = {.format = key_format(), .sinks = 1, .batch = group, .whole_prompt = true},
            .value = {.format = value_format(shape), .sinks = 1, .batch = 32, .whole_prompt = true}};
  }
  void validate(const CacheShape& shape) const {
    require_between("Refit: group", group, 1);
    require_between("Refit: rows", rows, 1);
    require_share("Refit: ridge", ridge);
    if (bits != 16) {
      key_format().validate(shape.head_dim);
      value_format(shape).validate(shape.values_dim());
    }
    if (!(least > 0) || !(least <= 1) || !(most >= 1) || !(most < 1e4))
      fail(ErrorCode::invalid_argument,
           {"Refit: least (", least, ") must lie in (0, 1] and most (", most, ") in [1, 10000)"});
    require_scoring("Refit: policy", policy, Scope::cache, budget, shape);
  }

 private:
  /// A dword row of three-bit codes holds so many values, two rows of a tile so many keys.
  static constexpr std::size_t BlockTokens = 32;

  GroupQuant key_format() const { return {.bits = bits, .axis = Axis::channel, .group = group}; }
  GroupQuant value_format(const CacheShape& shape) const {
    return {.bits = bits, .axis = Axis::token, .group = shape.values_dim()};
  }

  /// Codes are stored for 32 tokens at a time, so every head keeps, besides its first token, a multiple of that: all round up, and
  /// then those that keep most give, a quarter of the heads a round, until the budget of all is held. A head of a few tokens has too
  /// few values to fit, so the places that heads get by this help the fit too.
  static void round_to_blocks(Cache<Refit> heads, std::span<std::size_t> budgets) {
    std::vector<std::size_t> order;
    std::size_t allowed = 0, held = 0;
    for (std::size_t h = 0; h < heads.size(); ++h) {
      if (budgets[h] == 0 || budgets[h] >= heads[h].size()) continue;
      allowed += budgets[h];
      budgets[h] = std::min(round_up(budgets[h] - 1, BlockTokens) + 1, heads[h].size());
      held += budgets[h];
      order.push_back(h);
    }
    const auto gives = [&](std::size_t h) {
      const std::size_t surplus = (budgets[h] - 1) % BlockTokens, given = surplus ? surplus : BlockTokens;
      if (held <= allowed || budgets[h] <= given) return;
      budgets[h] -= given;
      held -= given;
    };
    for (std::size_t before = 0; held > allowed && held != before;) {
      before = held;
      std::ranges::stable_sort(order, std::greater<>(), [&](std::size_t h) { return budgets[h]; });
      for (std::size_t i = 0; i < divide_up(order.size(), 4); ++i) gives(order[i]);
    }
  }

  void match(const Head<Refit>& head, Plan& plan) const {
    std::vector<std::size_t> kept;
    for (std::size_t slot = 0; slot < head.size(); ++slot)
      if (plan.kept(slot)) kept.push_back(slot);
    const std::size_t dim = head.shape->head_dim, value_dim = head.shape->values_dim();
    std::vector<float> key_rows(kept.size() * dim), value_rows(kept.size() * value_dim);
    const Rows<float> keys(key_rows.data(), kept.size(), dim), values(value_rows.data(), kept.size(), value_dim);
    for (std::size_t i = 0; i < kept.size(); ++i) {
      std::ranges::copy(head.keys()[kept[i]], keys[i].begin());
      std::ranges::copy(head.values()[kept[i]], values[i].begin());
    }
    if (bits != 16) read_back(keys);
    const std::size_t known = head.reference_queries().positions.size();
    const ReferenceRows references(head, head.prompt->probes, std::max<std::size_t>(1, known / rows));
    HeadFit fit(references, keys, static_cast<float>(ridge));
    Eigen::VectorXf tokens = fit.fit_multiplicity(static_cast<float>(least), static_cast<float>(most));
    for (Eigen::Index i = 0; i < tokens.size(); ++i) tokens[i] = from_half(to_half(tokens[i]));
    fit.normalize(tokens);
    if (bits == 16) {
      fit.fit_values(values, head.value_limit, nullptr);
    } else {
      Coded coded(value_format(*head.shape), Role::value, value_dim, 1);
      const auto read_back_value = [&](std::span<float> row) { coded.read_back({row.data(), 1, row.size()}); };
      const FunctionRef<void(std::span<float>)> reader(read_back_value);
      fit.fit_values(values, head.value_limit, &reader);
    }
    // Keys so large that their rounding moves a logit by hundreds have no fit: what is kept then stays as it was.
    const bool finite = tokens.allFinite() && std::ranges::all_of(value_rows, [](float x) { return std::isfinite(x); });
    for (std::size_t i = 0; finite && i < kept.size(); ++i) {
      plan.multiplicity(kept[i], tokens[Eigen::Index(i)]);
      std::ranges::copy(values[i], plan.value(kept[i]).begin());
    }
  }

  /// Turns rows into what they read back as once they are sealed together.
  class Coded {
   public:
    Coded(const GroupQuant& format, Role role, std::size_t dim, std::size_t count)
        : codec_(make_codec(format, role, dim)), memory_(codec_->block_bytes(count) + Alignment) {}
    void read_back(Rows<float> sealed) {
      const auto address = reinterpret_cast<std::size_t>(memory_.data());
      std::byte* const block = memory_.data() + (round_up(address, Alignment) - address);
      codec_->encode(sealed, block, sealed.count, 0);
      codec_->decode(block, sealed.count, 0, sealed);
    }

   private:
    static constexpr std::size_t Alignment = 64;  // as blocks have
    std::shared_ptr<const Codec> codec_;
    std::vector<std::byte> memory_;
  };

  /// Keys become what their codes will read back as: the first stays dense, the others are sealed in groups.
  void read_back(Rows<float> keys) const {
    if (keys.count < 2) return;
    const Rows<float> sealed = keys.subrows(1, keys.count - 1);
    for (std::size_t begin = 0, count = 0; begin < sealed.count; begin += count) {
      const std::size_t left = sealed.count - begin;
      count = left <= group + group / 2 ? left : group;  // as Stream::whole_prompt seals them
      GroupQuant format = key_format();
      format.group = count;
      Coded(format, Role::key, keys.dim, count).read_back(sealed.subrows(begin, count));
    }
  }
};

}  // namespace kvc::inline KVC_ABI
