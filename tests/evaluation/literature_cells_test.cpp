// Policies of the literature, written on the public interface in tests/literature, against kvpress: the same window,
// the same protocol, a quarter of the cache.
#include <cmath>

#include "catch_shim.hpp"
#include "engine/model_file.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/comparison.hpp"
#include "evaluation/json.hpp"
#include "literature/duo_attention.hpp"
#include "literature/expected_attention.hpp"
#include "literature/keydiff.hpp"
#include "literature/kvzip.hpp"
#include "literature/think.hpp"
#include "literature/tova.hpp"

using namespace evaluation;

namespace {

/// A policy here and its row in the reference.
struct Cell {
  std::string policy, name, setting;
  double keep = 0.25;          ///< of the row; 1: the row has none
  double streaming_heads = 0;  ///< of DuoAttention: the share of heads that keep sinks and newest tokens only
};

const std::vector<Cell>& cells() {
  static const std::vector<Cell> all = {
      {"tova", "tova", ""},
      {"expected_attention", "expected_attention", ""},
      {"keydiff", "keydiff", ""},
      {"kvzip", "kvzip", ""},
      {"snapkv:keep=0.25,pyramid=20,window=64,kernel=5", "pyramidkv", ""},
      {"ada_kv:base=expected_attention,safeguard=minimum,floor_alpha=0.2", "adakv_expected_attention", ""},
      {"think:pruned=0.25", "think", "key_channel_ratio=0.25", 1},
      {"think:pruned=0.5", "think", "key_channel_ratio=0.5", 1},
      {"duo_attention", "duo_attention", "head_compression_ratio=0.5,sink=128,recent=256", 1, 0.5},
      {"duo_attention", "duo_attention", "head_compression_ratio=0.75,sink=128,recent=256", 1, 0.75}};
  return all;
}

void make_known() {
  using namespace literature;
  kvc::AnyPolicy::add<TOVA>();
  kvc::AnyPolicy::add<ExpectedAttention>();
  kvc::AnyPolicy::add<KeyDiff>();
  kvc::AnyPolicy::add<KVzip>();
  kvc::AnyPolicy::add<ThinK>();
  kvc::AnyPolicy::add<DuoAttention>();
}

/// All heads but those with the lowest of the reference's scores, as many as the share says.
kvc::HeadTable retrieving_heads(const Json& quality, double streaming) {
  std::vector<double> scores;
  const Json& table = quality.at("character").at("duo_attention_scores").at("scores");
  for (const Json& layer : table)
    for (const double score : layer.get<std::vector<double>>()) scores.push_back(score);
  std::vector<double> sorted = scores;
  std::ranges::sort(sorted);
  const double bound = sorted[static_cast<std::size_t>(std::nearbyint(streaming * double(scores.size())))];
  std::vector<std::uint8_t> flags;
  for (const double score : scores) flags.push_back(score >= bound);
  return {table.size(), table[0].size(), flags};
}

const Json& row_of(const Json& quality, const Cell& cell) {
  for (const Json& row : quality.at("per_window"))
    if (row[0].get<std::string>() == "emma" && row[1].get<double>() == 0 && row[2].get<std::string>() == cell.name &&
        row[3].get<std::string>() == cell.setting && (cell.keep == 1 || row[4].get<double>() == cell.keep))
      return row;
  throw std::runtime_error("the reference has no row for " + cell.policy);
}

}  // namespace

TEST_CASE("Ten cells of the literature have kvpress's perplexity within 0.1 percent", "[model]") {
  make_known();
  const Json quality = Json::parse(read_text(reference("quality_public.json")));
  std::vector<Contestant> contestants;
  for (const Cell& cell : cells()) {
    Contestant contestant = read_contestants(cell.policy, {0.25}).at(0);
    if (cell.streaming_heads > 0) contestant.policy.set_default(retrieving_heads(quality, cell.streaming_heads));
    contestants.push_back(std::move(contestant));
  }
  engine::ThreadPool pool;
  const engine::Model model = engine::Model::load(model_path(), pool);
  Comparison comparison(model, std::move(contestants), {.dense = kvc::Scalar::f32, .prompt_only = true});
  comparison.run(read_windows(reference("quality_public.json"), WindowPlan{}).at(0), [](const std::string&) {});

  const Cell full{"full", "full", "", 1};
  CHECK(std::abs(comparison.reference().mean_nll() - row_of(quality, full)[6].get<double>()) < 1e-3);
  for (std::size_t i = 0; i < cells().size(); ++i) {
    const Json& row = row_of(quality, cells()[i]);
    const Tally& tally = comparison.tallies()[i];
    const double kl = tally.mean_kl();
    INFO(cells()[i].policy << ": perplexity " << std::exp(tally.mean_nll()) << ", kvpress "
                           << std::exp(row[6].get<double>()) << "; KL " << kl << ", kvpress " << row[7].get<double>());
    CHECK(std::abs(std::exp(tally.mean_nll() - row[6].get<double>()) - 1) < 0.001);
    CHECK(std::abs(kl - row[7].get<double>()) < 0.0005 + 0.005 * row[7].get<double>());
    if (cells()[i].name != "think") CHECK(std::abs(tally.footprints.at(0).kept - row[5].get<double>()) < 0.001);
  }
}
