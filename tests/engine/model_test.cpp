#include "engine/model.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "catch_shim.hpp"
#include "engine/dense_attention.hpp"
#include "engine/model_file.hpp"
#include "engine/sequences.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/json.hpp"
#include "kvc/policies/full.hpp"

using engine::Model;
using engine::Workspace;
using evaluation::Json;

namespace {

engine::ThreadPool& pool() {
  static engine::ThreadPool instance;
  return instance;
}

const Model& model() {
  static const Model instance = Model::load(model_path(), pool());
  return instance;
}

std::vector<kvc::Position> positions_from(std::size_t first, std::size_t count) {
  std::vector<kvc::Position> positions(count);
  std::iota(positions.begin(), positions.end(), static_cast<kvc::Position>(first));
  return positions;
}

double log_sum_exp(std::span<const float> logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit} - largest);
  return largest + std::log(sum);
}

/// -log p(ids[i + 1] | ids[0 .. i]) for every i, from one pass over ids through kvc's default f16 cache.
std::vector<double> negative_log_likelihoods(const Model& model, const std::vector<int>& ids) {
  Workspace workspace;
  kvc::KVCache cache(model.cache_shape(), kvc::Full{}, {.executor = &pool()});
  engine::prefill(model, cache, ids, {}, workspace);
  std::vector<double> result;
  std::vector<float> logits(128 * model.config().vocabulary);
  for (std::size_t begin = 0; begin + 1 < ids.size(); begin += 128) {
    const std::size_t rows = std::min<std::size_t>(128, ids.size() - 1 - begin);
    const kvc::Rows<float> part(logits.data(), rows, model.config().vocabulary);
    model.head(workspace.hidden().subrows(begin, rows), part);
    for (std::size_t row = 0; row < rows; ++row)
      result.push_back(log_sum_exp(part[row]) - double{part[row][static_cast<std::size_t>(ids[begin + row + 1])]});
  }
  return result;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Largest difference of the logits in logits.json to those of `logits`, one row per prompt token.
double largest_logit_difference(const Json& reference_file, kvc::ConstRows logits) {
  double largest = 0;
  for (const Json& entry : reference_file.at("positions")) {
    const auto row = logits[static_cast<std::size_t>(entry.at("position").get<double>())];
    auto compare = [&](const char* ids, const char* values) {
      for (std::size_t i = 0; i < entry[ids].size(); ++i) {
        const double ours = double{row[static_cast<std::size_t>(entry[ids][i].get<double>())]};
        largest = std::max(largest, std::abs(ours - entry[values][i].get<double>()));
      }
    };
    compare("top20_ids", "top20_logits");
    compare("probe_ids", "probe_logits");
    largest = std::max(largest, std::abs(log_sum_exp(row) - entry.at("lse").get<double>()));
  }
  return largest;
}

}  // namespace

TEST_CASE("logits and log-sum-exp of the 96-token prompt equal the reference to 1e-3", "[model]") {
  const Json reference_file = Json::parse(read_text(reference("logits.json")));
  const auto ids = reference_file.at("prompt_ids").get<std::vector<int>>();
  std::vector<float> memory(ids.size() * model().config().vocabulary);
  const kvc::Rows<float> logits(memory.data(), ids.size(), model().config().vocabulary);
  Workspace workspace;

  SECTION("all tokens in one pass") {
    DenseAttention attention(model().cache_shape(), pool());
    model().forward(ids, positions_from(0, ids.size()), attention, logits, workspace);
    const double difference = largest_logit_difference(reference_file, logits);
    INFO("largest difference " << difference);
    CHECK(difference < 1e-3);
  }
  SECTION("token by token") {
    DenseAttention attention(model().cache_shape(), pool());
    for (std::size_t i = 0; i < ids.size(); ++i)
      model().forward(std::span(ids).subspan(i, 1), positions_from(i, 1), attention, logits.subrows(i, 1), workspace);
    const double difference = largest_logit_difference(reference_file, logits);
    INFO("largest difference " << difference);
    CHECK(difference < 1e-3);
  }
  SECTION("the prompt's first half through kvc's f32 cache, then token by token") {
    kvc::KVCache cache(model().cache_shape(), kvc::Full{kvc::Scalar::f32}, {.executor = &pool()});
    kvc::CacheCore* const caches[] = {&cache};
    const std::size_t half = ids.size() / 2;
    engine::prefill(model(), cache, std::span(ids).first(half), logits.subrows(0, half), workspace);
    for (std::size_t i = half; i < ids.size(); ++i)
      engine::step(model(), caches, std::span(ids).subspan(i, 1), positions_from(i, 1), logits.subrows(i, 1),
                   workspace);
    const double difference = largest_logit_difference(reference_file, logits);
    INFO("largest difference " << difference);
    CHECK(difference < 1e-3);
  }
}

TEST_CASE("greedy answers to the chat prompts are the reference's, token by token", "[model]") {
  const Json reference_file = Json::parse(read_text(reference("logits.json")));
  std::vector<float> memory(model().config().vocabulary);
  const kvc::Rows<float> logits(memory.data(), 1, memory.size());
  Workspace workspace;
  for (const Json& entry : reference_file.at("greedy")) {
    DenseAttention attention(model().cache_shape(), pool());
    auto ids = entry.at("prompt_ids").get<std::vector<int>>();
    const auto expected = entry.at("generated_ids").get<std::vector<int>>();
    const std::size_t prompt = ids.size();
    model().forward(ids, positions_from(0, prompt), attention, logits, workspace);
    while (true) {
      ids.push_back(static_cast<int>(std::max_element(memory.begin(), memory.end()) - memory.begin()));
      if (ids.size() == prompt + expected.size()) break;
      model().forward(std::span(ids).last(1), positions_from(ids.size() - 1, 1), attention, logits, workspace);
    }
    CHECK(std::vector<int>(ids.begin() + static_cast<std::ptrdiff_t>(prompt), ids.end()) == expected);
    CHECK(model().tokenizer().decode(expected) == entry.at("text").get<std::string>());
  }
}

TEST_CASE("the mean likelihood of 2048 tokens of emma is llama.cpp's within half a percent", "[model]") {
  const Json reference_file = Json::parse(read_text(reference("nll_llamacpp.json")));
  const Json& expected = reference_file.at("values")[0];
  REQUIRE(expected.at("text").get<std::string>() == "emma.txt");
  const auto ids = reference_file.at("token_ids").at("emma").get<std::vector<int>>();
  for (const engine::Arithmetic arithmetic : {engine::Arithmetic::f32, engine::Arithmetic::fast}) {
    const double value = mean(negative_log_likelihoods(Model::load(model_path(), pool(), arithmetic), ids));
    INFO("mean NLL of emma: " << value << ", llama.cpp " << expected.at("mean_nll").get<double>());
    CHECK(std::abs(value / expected.at("mean_nll").get<double>() - 1) < 0.005);
  }
}
