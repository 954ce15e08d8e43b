#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "catch_shim.hpp"
#include "engine/model.hpp"
#include "engine/model_file.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/comparison.hpp"
#include "evaluation/results.hpp"
#include "evaluation/windows.hpp"
#include "llama_cpp/session.hpp"
#include "support/temporary_file.hpp"

// A real model, with the same weights in f32 for llama.cpp and for the engine of the examples.

namespace {

struct Fed {
  std::vector<evaluation::Score> scores;
  float largest_difference = 0;  ///< of a logit to the first session's
};

/// Feeds a window to all sessions; each is scored against the first.
std::vector<Fed> feed(const evaluation::Window& window, std::span<llama_programs::Session* const> sessions) {
  const std::span<const llama_token> ids(window.ids);
  for (llama_programs::Session* session : sessions) session->feed(ids.first(window.prompt));
  std::vector<Fed> all(sessions.size());
  evaluation::ReferencePrediction reference;
  for (std::size_t i = window.prompt; i + 1 < ids.size(); ++i) {
    for (llama_programs::Session* session : sessions) session->feed(ids.subspan(i, 1));
    const std::span<const float> expected = sessions[0]->logits();
    reference.set(expected);
    for (std::size_t s = 0; s < sessions.size(); ++s) {
      const std::span<const float> logits = sessions[s]->logits();
      for (std::size_t token = 0; token < logits.size(); ++token)
        all[s].largest_difference = std::max(all[s].largest_difference, std::abs(logits[token] - expected[token]));
      all[s].scores.push_back(reference.score(logits, static_cast<std::size_t>(ids[i + 1])));
    }
  }
  return all;
}

}  // namespace

TEST_CASE("a real model's logits are llama.cpp's, perplexities of policies are the engine's", "[model]") {
  const auto contestants =
      evaluation::read_contestants("snapkv:budget=64,window=16 | kivi:bits=4; kivi:bits=2", {0.25});
  const evaluation::WindowPlan plan{.count = 1, .offset = 4096, .stride = 1, .prompt = 200, .decode = 24};

  engine::ThreadPool pool(2);
  const engine::Model model = engine::Model::load(model_path(), pool);
  const std::string text = read_text(KVC_TEST_DATA "/../../examples/data/emma.txt");
  const std::vector<int> ids = model.tokenizer().encode(text, engine::SpecialTokens::as_text);
  const evaluation::Window window = evaluation::cut_windows(ids, plan)[0];
  // Rows that are not quantized are f32 everywhere: the engine computes the prompt of all of them with full attention.
  evaluation::Comparison comparison(model, contestants, {.dense = kvc::Scalar::f32});
  comparison.run(window, [](const std::string&) {});

  const TemporaryFile file("");
  llama_programs::dequantize(model_path(), file.path());
  const llama_programs::Model same(file.path());
  const std::vector<llama_token> own_ids = same.tokens_of(text, false);
  CHECK(std::equal(own_ids.begin(), own_ids.end(), ids.begin(), ids.end()));
  const llama_programs::Size size{.tokens = plan.tokens(), .batch = 64, .threads = 1};
  llama_programs::OwnSession own(same, size, GGML_TYPE_F32, false);
  llama_programs::ServedSession full(same, size, evaluation::full_cache().policy, {.dense = {kvc::Scalar::f32}});
  llama_programs::ServedSession first(same, size, contestants[0].policy, {.dense = {kvc::Scalar::f32}});
  llama_programs::ServedSession second(same, size, contestants[1].policy, {.dense = {kvc::Scalar::f32}});
  llama_programs::Session* const sessions[] = {&own, &full, &first, &second};
  const std::vector<Fed> fed = feed(window, sessions);

  CHECK(fed[1].largest_difference < 1e-4f);
  const auto perplexity = [&](std::size_t session) {
    return std::exp(evaluation::window_score(fed[session].scores).nll);
  };
  const auto of_engine = [](const evaluation::Tally& tally) { return std::exp(tally.mean_nll()); };
  CHECK(std::abs(perplexity(1) / of_engine(comparison.reference()) - 1) < 0.002);
  CHECK(std::abs(perplexity(2) / of_engine(comparison.tallies()[0]) - 1) < 0.002);
  CHECK(std::abs(perplexity(3) / of_engine(comparison.tallies()[1]) - 1) < 0.002);
  CHECK(full.shape().rotary.inv_freq == model.cache_shape().rotary.inv_freq);
  CHECK(full.shape().rotary.interleaved == model.cache_shape().rotary.interleaved);
}
