#include "evaluation/analyze_heads.hpp"

#include <algorithm>
#include <numeric>

#include "catch_shim.hpp"
#include "engine/model_file.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/compare_options.hpp"

using namespace evaluation;

namespace {

std::string complaint(std::vector<const char*> words) {
  try {
    read_heads_options(words);
  } catch (const kvc::Error& error) {
    return error.what();
  }
  return "none";
}

struct KnownHead {
  std::size_t layer, head;
  float score;
};

/// The model's scores and the heads in falling order of one of them.
std::vector<std::size_t> order_of(const std::vector<float>& scores) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  return order;
}

/// Checks that the known heads are among the `among` best, each within `tolerance` of its score.
void check_best(const std::vector<float>& scores, std::size_t query_heads, const std::vector<KnownHead>& known,
                std::size_t among, float tolerance) {
  const std::vector<std::size_t> order = order_of(scores);
  for (const KnownHead& head : known) {
    const std::size_t index = head.layer * query_heads + head.head;
    INFO("L" << head.layer << "H" << head.head << ": " << scores[index] << ", elsewhere " << head.score);
    CHECK(std::find(order.begin(), order.begin() + std::ptrdiff_t(among), index) !=
          order.begin() + std::ptrdiff_t(among));
    CHECK(std::abs(scores[index] - head.score) < tolerance);
  }
}

}  // namespace

TEST_CASE("analyze heads asks for the paper's shares on a short block unless told otherwise") {
  const HeadsOptions options = read_heads_options(std::vector<const char*>{"--model", "m.gguf"});
  CHECK(options.text.block == 400);
  CHECK(options.text.repeats == 4);
  CHECK(options.shares.induction == 0.14);
  CHECK(options.shares.echo == 0.01);
  CHECK(options.out.empty());
}

TEST_CASE("analyze heads refuses what cannot be meant") {
  CHECK(complaint({}) == "--model FILE is missing");
  CHECK(complaint({"--model", "m", "--induction", "14"}) == "--induction takes a share in [0, 1], got '14'");
  CHECK(complaint({"--model", "m", "--repeats", "1"}) != "none");
  CHECK(complaint({"--model", "m", "--block", "0"}) != "none");
}

TEST_CASE("a repeated block is a BOS and the same ids again and again, the same for a seed everywhere") {
  const std::vector<int> ids = repeated_ids({.block = 50, .repeats = 3}, 1000, 7, 42);
  REQUIRE(ids.size() == 151);
  CHECK(ids[0] == 7);
  for (std::size_t i = 51; i < ids.size(); ++i) CHECK(ids[i] == ids[i - 50]);
  CHECK(std::all_of(ids.begin(), ids.end(), [](int id) { return id >= 0 && id < 1000; }));
  CHECK(ids == repeated_ids({.block = 50, .repeats = 3}, 1000, 7, 42));
  CHECK(ids != repeated_ids({.block = 50, .repeats = 3}, 1000, 7, 43));
}

TEST_CASE("only contestants that name no table want the model's heads") {
  const auto options = read_compare_options(std::vector<const char*>{
      "--model=m", "--text=t", "--keep=0.5", "--policies=razor_attention; snapkv; razor_attention:heads=none"});
  REQUIRE(options.contestants.size() == 3);
  CHECK(options.contestants[0].policy.wants<kvc::HeadTable>());
  CHECK_FALSE(options.contestants[1].policy.wants<kvc::HeadTable>());
  CHECK_FALSE(options.contestants[2].policy.wants<kvc::HeadTable>());
}

TEST_CASE("the model's induction and echo heads are those that PyTorch finds", "[model]") {
  // The reference's block is of other random ids, so scores agree only roughly.
  engine::ThreadPool pool;
  const engine::Model model = engine::Model::load(model_path(), pool);
  const kvc::HeadScores scores = score_heads(model, {});
  check_best(scores.induction, scores.query_heads,
             {{18, 6, 0.90f},
              {17, 3, 0.85f},
              {18, 7, 0.82f},
              {23, 7, 0.55f},
              {23, 2, 0.54f},
              {17, 4, 0.54f},
              {20, 6, 0.54f},
              {23, 8, 0.37f}},
             10, 0.15f);
  check_best(scores.echo, scores.query_heads, {{14, 3, 0.48f}, {15, 6, 0.46f}, {7, 7, 0.38f}, {8, 0, 0.28f}}, 6, 0.2f);
  const std::vector<std::size_t> order = order_of(scores.induction);
  CHECK(order[0] == 18 * scores.query_heads + 6);

  const kvc::HeadTable table = kvc::retrieval_heads(scores);
  CHECK(table.count() >= 13);  // round(90 * 0.14), and the best by echo unless it is one of them
  CHECK(table.count() <= 14);
  CHECK(table.retrieves({18, 2}));
  CHECK(table.retrieves({17, 1}));
  CHECK(table.retrieves({14, 1}));
}

TEST_CASE("a block longer than the model's context is refused with what to do", "[model]") {
  engine::ThreadPool pool;
  const engine::Model model = engine::Model::load(model_path(), pool);
  HeadsOptions options;
  options.text.block = 2500;
  try {
    score_heads(model, options);
    FAIL("nothing was refused");
  } catch (const kvc::Error& error) {
    CHECK(std::string(error.what()) ==
          "a block of 2500 tokens, 4 times, makes 10001 tokens, more than the model's context of 8192; ask for a "
          "smaller --block");
  }
}
