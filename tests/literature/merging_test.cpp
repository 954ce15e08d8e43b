// Policies that rewrite what they keep.
#include "catch_shim.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/policies/all.hpp"
#include "literature/trial.hpp"
#include "support/fake_head.hpp"

using namespace literature;

namespace {

constexpr CacheOptions Exact{.dense = {Scalar::f32}, .arithmetic = Arithmetic::exact};
using Row = std::vector<float>;

double cosine(const Row& a, const Row& b) {
  double dot = 0, left = 0, right = 0;
  for (std::size_t c = 0; c < a.size(); ++c) {
    dot += double(a[c]) * double(b[c]);
    left += double(a[c]) * double(a[c]);
    right += double(b[c]) * double(b[c]);
  }
  return dot / std::sqrt(left * right);
}
double distance(std::span<const float> a, std::span<const double> b) {
  double worst = 0;
  for (std::size_t c = 0; c < a.size(); ++c) worst = std::max(worst, std::abs(double(a[c]) - b[c]));
  return worst;
}

/// D2O as it is defined, over plain rows: the slots of `kept` absorb what is most like them.
struct NaiveMerge {
  double threshold = 0;
  bool started = false;
  std::size_t merged = 0;
  std::vector<std::vector<double>> keys, values;

  void operator()(const std::vector<Row>& old_keys, const std::vector<Row>& old_values, const Plan& plan) {
    keys.clear();
    values.clear();
    for (std::size_t slot = 0; slot < old_keys.size(); ++slot) {
      keys.emplace_back(old_keys[slot].begin(), old_keys[slot].end());
      values.emplace_back(old_values[slot].begin(), old_values[slot].end());
    }
    std::vector<std::tuple<std::size_t, std::size_t, double>> found;
    double mean = 0;
    for (std::size_t from = 0; from < old_keys.size(); ++from) {
      if (plan.kept(from)) continue;
      std::size_t best = 0;
      double most = -2;
      for (std::size_t to = 0; to < old_keys.size(); ++to)
        if (plan.kept(to) && cosine(old_keys[from], old_keys[to]) > most) {
          best = to;
          most = cosine(old_keys[from], old_keys[to]);
        }
      found.emplace_back(from, best, most);
      mean += most;
    }
    mean /= double(found.size());
    threshold = started ? (threshold + mean) / 2 : mean;
    started = true;
    std::vector<double> tokens(old_keys.size(), 1.0);
    merged = 0;
    for (const auto& [from, to, similarity] : found) {
      if (similarity < threshold) continue;
      ++merged;
      tokens[to] += 1;
      for (std::size_t c = 0; c < keys[to].size(); ++c) keys[to][c] += similarity * double(old_keys[from][c]);
      for (std::size_t c = 0; c < values[to].size(); ++c) values[to][c] += similarity * double(old_values[from][c]);
    }
    for (std::size_t slot = 0; slot < keys.size(); ++slot) {
      for (double& x : keys[slot]) x /= tokens[slot];
      for (double& x : values[slot]) x /= tokens[slot];
    }
  }
};

/// Passes everything on to a head, and notes what of it is decoded.
class Spy final : public HeadSource {
 public:
  explicit Spy(HeadSource& head) : head_(&head) {}
  std::size_t rows = 0, products_asked = 0;

  ConstRows keys_from(std::size_t first) override { return counted(head_->keys_from(first)); }
  ConstRows values_from(std::size_t first) override { return counted(head_->values_from(first)); }
  void read_slot(std::size_t slot, std::span<float> key, std::span<float> value) override {
    ++rows;
    head_->read_slot(slot, key, value);
  }
  ConstRows unrotated_keys() override { return counted(head_->unrotated_keys()); }
  ConstRows products(ConstRows given) override {
    ++products_asked;
    return head_->products(given);
  }
  ConstRows window_queries(std::size_t window) override { return head_->window_queries(window); }
  ConstRows window_attention(std::size_t window) override { return head_->window_attention(window); }
  ConstRows window_sums(std::size_t window) override { return head_->window_sums(window); }
  ConstRows window_logits(std::size_t window) override { return head_->window_logits(window); }
  ReferenceQueries reference_queries() override { return head_->reference_queries(); }

 private:
  ConstRows counted(ConstRows given) {
    rows += given.count;
    return given;
  }
  HeadSource* head_;
};

}  // namespace

TEST_CASE("D2O adds a token that goes to the kept one most like it, if it is more like it than tokens were before") {
  support::FakeHead<D2O> fake({.budget = 20, .sinks = 2, .layer_budgets = false});
  NaiveMerge naive;
  fake.append(60);
  fake.observe(Event::prompt_end, 60);
  std::size_t merged = 0, rejected = 0;
  for (int step = 0; step < 30; ++step) {
    const Event event = step == 0 ? Event::prompt_end : Event::decode;
    if (step != 0) {
      fake.append(1);
      fake.observe(event, 1);
    }
    const Plan plan = fake.plan(event);
    REQUIRE(plan.kept_count() == 20);
    naive(fake.stored_keys, fake.stored_values, plan);
    merged += naive.merged;
    rejected += fake.positions.size() - 20 - naive.merged;
    std::vector<std::vector<double>> keys, values;
    for (std::size_t slot = 0; slot < fake.positions.size(); ++slot)
      if (plan.kept(slot)) {
        keys.push_back(naive.keys[slot]);
        values.push_back(naive.values[slot]);
      }
    fake.apply(plan);
    double worst = 0;
    for (std::size_t slot = 0; slot < 20; ++slot)
      worst = std::max(
          {worst, distance(fake.stored_keys[slot], keys[slot]), distance(fake.stored_values[slot], values[slot])});
    CHECK(worst < 1e-5);
  }
  CHECK(merged > 20);
  CHECK(rejected > 20);
}

TEST_CASE(
    "D2O finds the most similar key by products with the stored keys: of all rows it reads those that go or change") {
  support::FakeHead<D2O> fake({.budget = 500, .sinks = 2, .layer_budgets = false});
  fake.append(500);
  fake.observe(Event::prompt_end, 500);
  fake.append(1);
  fake.observe(Event::decode, 1);
  Spy spy(fake);
  Head<D2O> head = fake.head(Event::decode);
  fake.score(head);
  head.source = &spy;
  const Plan plan = fake.plan(head);
  CHECK(plan.kept_count() == 500);
  CHECK(spy.products_asked == 1);
  CHECK(spy.rows == 4);  // keys and values of the token that goes and of the one that takes it in
}

TEST_CASE("CaM spreads the value of a token that goes over the kept ones behind it, as often as its attention says") {
  support::FakeHead<CaM> fake({.base = H2O{.recent = 8}, .budget = 20, .neighbours = 5});
  fake.append(60);
  fake.observe(Event::prompt_end, 60);
  fake.apply(fake.plan(Event::prompt_end));
  REQUIRE(fake.positions.size() == 20);
  double expected = 0, variance = 0, spread = 0;
  for (int step = 0; step < 400; ++step) {
    fake.append(1);
    fake.observe(Event::decode, 1);
    const Plan plan = fake.plan(Event::decode);
    std::size_t gone = 0;
    while (plan.kept(gone)) ++gone;
    const std::size_t count = std::min<std::size_t>(5, 20 - gone);
    double mass = 0;
    for (std::size_t near = gone + 1; near <= gone + count; ++near) mass += double(fake.slots[near].mass);
    const double own = double(fake.slots[gone].mass), chance = std::min(1.0, own * double(count) / mass);
    expected += chance;
    variance += chance * (1 - chance);
    CHECK((plan.rewrites() == 0 || plan.rewrites() == count));
    if (chance == 1) CHECK(plan.rewrites() == count);
    spread += plan.rewrites() != 0;
    for (std::size_t i = 0; i < plan.rewrites(); ++i) {
      const Plan::Rewrite rewrite = plan.rewrite_at(i);
      std::vector<double> sum;
      for (std::size_t c = 0; c < rewrite.value.size(); ++c)
        sum.push_back(double(fake.stored_values[rewrite.slot][c]) +
                      double(fake.stored_values[gone][c]) / double(count));
      CHECK(rewrite.key.empty());
      CHECK(distance(rewrite.value, sum) < 1e-6);
    }
    fake.apply(plan);
  }
  INFO(spread << " times, " << expected << " expected");
  CHECK(expected > 20);
  CHECK(std::abs(spread - expected) < 4 * std::sqrt(variance) + 1);
}

TEST_CASE("CaM evicts at the end of a prompt as its base does, and changes no value") {
  CacheCore base(Small, stages_of(H2O{.budget = 100}), Exact);
  CacheCore merged(Small, stages_of(CaM{.base = H2O{}, .budget = 100}), Exact);
  for (CacheCore* cache : {&base, &merged}) feed_prompt(*cache);
  CHECK(holdings(merged) == holdings(base));
  for (CacheCore* cache : {&base, &merged}) decode(*cache);
  CHECK(holdings(merged).positions == holdings(base).positions);
  CHECK(rows_of(merged, {1, 0}).keys == rows_of(base, {1, 0}).keys);
  CHECK(rows_of(merged, {1, 0}).values != rows_of(base, {1, 0}).values);
}
