// Policies of the literature against kvpress 0.5.5: the same window, the same protocol, a quarter of the cache unless a cell
// says more.
#include <cmath>

#include "catch_shim.hpp"
#include "engine/config.hpp"
#include "engine/dequantize.hpp"
#include "engine/model_file.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/comparison.hpp"
#include "evaluation/json.hpp"
#include "kvc/eigen.hpp"
#include "kvc/policies/criticalkv.hpp"

using namespace evaluation;

namespace {

/// A policy here and its row in the reference.
struct Cell {
  std::string policy, name, setting;
  double keep = 0.25;          ///< of the row; 1: the row has none
  double streaming_heads = 0;  ///< of DuoAttention: the share of heads that keep sinks and newest tokens only
  double bound = 0.001;        ///< of the perplexity's difference
};

const std::vector<Cell>& cells() {
  static const std::vector<Cell> all = {
      {"tova", "tova", ""},
      {"expected_attention", "expected_attention", ""},
      {"keydiff", "keydiff", ""},
      {"lagkv", "lagkv", ""},
      // Tokens of six partitions share a rank, and kvpress leaves to a sort whose is the last that stays.
      {"lagkv", "lagkv", "", 0.5, 0, 0.003},
      // kvpress keeps 13 of 52 chunks, the last of which has 4 tokens; here the budget is in tokens.
      {"chunkkv:base=(snapkv:window=64,kernel=5),budget=244", "chunkkv_snapkv", ""},
      {"criticalkv:base=(snapkv:window=64,kernel=5)", "criticalkv_snapkv", ""},
      {"simlayerkv:threshold=0.9,recent=256", "simlayerkv", "lazy_threshold=0.9,n_last=1,n_recent=256,n_initial=4", 1},
      {"simlayerkv:threshold=0.65,recent=256", "simlayerkv", "lazy_threshold=0.65,n_last=1,n_recent=256,n_initial=4",
       1},
      {"kvzip", "kvzip", ""},
      // At a quarter the smallest layer would hold less than the window, and kvpress falls back to SnapKV.
      {"snapkv:keep=0.25,pyramid=20,window=64,kernel=5", "pyramidkv", ""},
      {"snapkv:keep=0.5,pyramid=20,window=64,kernel=5", "pyramidkv", "", 0.5},
      {"ada_kv:base=expected_attention,safeguard=minimum,floor_alpha=0.2", "adakv_expected_attention", ""},
      {"think:pruned=0.25", "think", "key_channel_ratio=0.25", 1},
      {"think:pruned=0.5", "think", "key_channel_ratio=0.5", 1},
      {"duo_attention", "duo_attention", "head_compression_ratio=0.5,sink=128,recent=256", 1, 0.5},
      {"duo_attention", "duo_attention", "head_compression_ratio=0.75,sink=128,recent=256", 1, 0.75}};
  return all;
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

/// What values add to the output of each layer, from the projections in the model's file.
kvc::ValueNorms value_norms() {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const engine::GGUFFile file(model_path());
  const engine::Config config = engine::read_config(file);
  const auto projections = std::make_shared<std::vector<Matrix>>();
  for (std::size_t layer = 0; layer < config.layers; ++layer) {
    Matrix projection(config.hidden, config.query_width());
    for (std::size_t row = 0; row < config.hidden; ++row)
      engine::dequantize_row(file.tensor("blk." + std::to_string(layer) + ".attn_output.weight"), row,
                             {projection.row(Eigen::Index(row)).data(), config.query_width()});
    projections->push_back(std::move(projection));
  }
  const std::size_t group = config.query_heads / config.kv_heads;
  return {[=](kvc::HeadId id, kvc::ConstRows values, std::span<float> norms) {
    Eigen::Map<Eigen::VectorXf> sums(norms.data(), Eigen::Index(norms.size()));
    sums.setZero();
    for (std::size_t g = 0; g < group; ++g) {
      const auto part = (*projections)[id.layer].middleCols(Eigen::Index((id.head * group + g) * values.dim),
                                                            Eigen::Index(values.dim));
      sums += (kvc::as_eigen(values) * part.transpose()).cwiseAbs().rowwise().sum() / float(group);
    }
  }};
}

const Json& row_of(const Json& quality, const Cell& cell) {
  for (const Json& row : quality.at("per_window"))
    if (row[0].get<std::string>() == "emma" && row[1].get<double>() == 0 && row[2].get<std::string>() == cell.name &&
        row[3].get<std::string>() == cell.setting && (cell.keep == 1 || row[4].get<double>() == cell.keep))
      return row;
  throw std::runtime_error("the reference has no row for " + cell.policy);
}

}  // namespace

TEST_CASE("Seventeen cells of the literature have kvpress's perplexity within 0.1 percent, where ranks tie within 0.3",
          "[model]") {
  const Json quality = Json::parse(read_text(reference("quality_public.json")));
  std::vector<Contestant> contestants;
  for (const Cell& cell : cells()) {
    Contestant contestant = read_contestants(cell.policy, {cell.keep == 1 ? 0.25 : cell.keep}).at(0);
    if (cell.streaming_heads > 0) contestant.policy.set_default(retrieving_heads(quality, cell.streaming_heads));
    if (cell.name == "criticalkv_snapkv") contestant.policy.set_default(value_norms());
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
    CHECK(std::abs(std::exp(tally.mean_nll() - row[6].get<double>()) - 1) < cells()[i].bound);
    CHECK(std::abs(kl - row[7].get<double>()) < 0.0005 + 0.005 * row[7].get<double>());
    if (cells()[i].name != "think") CHECK(std::abs(tally.footprints.at(0).kept - row[5].get<double>()) < 0.001);
  }
}
