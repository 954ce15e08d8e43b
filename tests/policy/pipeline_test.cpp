#include <Eigen/Dense>

#include <kvc/policies/full.hpp>
#include <kvc/policies/h2o.hpp>
#include <kvc/policies/kivi.hpp>
#include <kvc/policies/quest.hpp>
#include <kvc/policies/snapkv.hpp>
#include <kvc/policies/streaming_llm.hpp>
#include <kvc/policy/pipeline.hpp>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"

using namespace kvc;

namespace {

struct PairsLayers {
  bool pairs(std::size_t layer, const CacheShape&) const { return layer % 2 == 1; }
  void merge(const Head<PairsLayers>&, const Head<PairsLayers>&, PairPlan&) const {}
};
/// A researcher's evict that lost its const.
struct LostConst {
  void evict(Head<LostConst>&, Plan&) {}
};
/// A score with the wrong element type.
struct WrongSpan {
  void score(const Head<WrongSpan>&, std::span<double>) const {}
};

template <class A, class B>
concept Joins = requires(A a, B b) {
  a | b;
};

const CacheShape Shape{.layers = 4, .query_heads = 4, .kv_heads = 2};

std::string checked(const Stages& stages) {
  return support::error_text([&] { check_stages(stages, Shape); });
}
Stages together(const Stages& a, const Stages& b) {
  Stages all = a;
  all.insert(all.end(), b.begin(), b.end());
  return all;
}

}  // namespace

TEST_CASE("a pipeline has the stages of its parts in order, however it is nested") {
  const auto pipeline = StreamingLLM{.budget = 100} | (SnapKV{} | KIVI{});
  STATIC_REQUIRE(std::is_same_v<decltype(pipeline), const Pipeline<StreamingLLM, SnapKV, KIVI>>);
  const Stages stages = stages_of(pipeline);
  REQUIRE(stages.size() == 3);
  CHECK(stages[0]->budget({0, 0}, 1000, Shape) == 100);
  CHECK(stages[1]->needs().query_window == 64);
  CHECK(stages[2]->verbs().quantize);
}

TEST_CASE("a single policy is one stage") {
  const Stages stages = stages_of(H2O{.budget = 7});
  REQUIRE(stages.size() == 1);
  CHECK(stages[0]->budget({0, 0}, 1000, Shape) == 7);
  CHECK(stages[0]->slot_bytes() == sizeof(H2O::Slot));
}

TEST_CASE("operator| joins policies and pipelines and nothing else") {
  STATIC_REQUIRE(Joins<SnapKV, KIVI>);
  STATIC_REQUIRE(Joins<Pipeline<SnapKV>, KIVI>);
  STATIC_REQUIRE(!Joins<SnapKV, int>);
  STATIC_REQUIRE(!Joins<SnapKV, CacheShape>);
  STATIC_REQUIRE(!Composable<Budget>);
  STATIC_REQUIRE(!Composable<Eigen::DecompositionOptions>);
}

TEST_CASE("operator| leaves Eigen's enumerations alone under `using namespace kvc`") {
  const auto options = Eigen::ComputeThinU | Eigen::ComputeThinV;
  STATIC_REQUIRE(std::is_integral_v<decltype(options)>);
  CHECK(Eigen::JacobiSVD<Eigen::MatrixXf>(Eigen::MatrixXf::Identity(2, 2), options).singularValues()[0] == 1.0f);
}

TEST_CASE("a verb with a wrong signature is found by its name") {
  STATIC_REQUIRE(!Evicts<LostConst>);
  STATIC_REQUIRE(detail::Named_evict<LostConst>);
  STATIC_REQUIRE(!Scores<WrongSpan>);
  STATIC_REQUIRE(detail::Named_score<WrongSpan>);
  STATIC_REQUIRE(!detail::Named_evict<KIVI>);
  STATIC_REQUIRE(check_policy<SnapKV>());
}

TEST_CASE("two quantizers cannot work together") {
  CHECK(checked(together(stages_of(KIVI{}), stages_of(Full{.bits = 8}))) ==
        "two quantizers in one pipeline: rows can be sealed by one of them only");
}

TEST_CASE("two selectors cannot work together") {
  CHECK(checked(together(stages_of(Quest{}), stages_of(Quest{}))) ==
        "two selectors in one pipeline: only one can say what a query reads");
}

TEST_CASE("merging layers needs stages that keep the same positions everywhere") {
  CHECK(checked(together(stages_of(SnapKV{}), stages_of(PairsLayers{}))) ==
        "cross-layer merging needs stages that keep the same positions in every layer and head");
  CHECK(checked(stages_of(StreamingLLM{} | PairsLayers{})) == "none");
}

TEST_CASE("check_stages asks every stage, and checks the shape") {
  CHECK(checked(stages_of(KIVI{} | SnapKV{.budget = 10})) == "SnapKV: window + 1 (65) must not exceed the budget (10)");
  CHECK(support::error_text([] { check_stages(stages_of(Full{}), {.query_heads = 3, .kv_heads = 2}); }) ==
        "CacheShape: query_heads (3) must be a multiple of kv_heads (2)");
  CHECK(checked(stages_of(SnapKV{} | KIVI{} | Quest{})) == "none");
}
