#include "evaluation/analyze_layers.hpp"

#include <algorithm>
#include <vector>

#include "catch_shim.hpp"
#include "kvc/analysis/layer_similarity_table.hpp"
#include "kvc/error.hpp"

using namespace evaluation;

namespace {

LayersOptions read(std::vector<const char*> words) {
  words.insert(words.end(), {"--model", "m.gguf", "--text", "t.txt"});
  return read_layers_options(words);
}
std::string complaint(const std::vector<const char*>& words) {
  try {
    read_layers_options(words);
  } catch (const kvc::Error& error) {
    return error.what();
  }
  return "";
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
/// Layers whose merging causes these errors.
std::vector<kvc::LayerSimilarity> report_with(const std::vector<double>& errors) {
  std::vector<kvc::LayerSimilarity> report;
  for (std::size_t i = 0; i < errors.size(); ++i) {
    kvc::LayerSimilarity pair{{i, i + 1}, {}, {}};
    pair.all.keys = {.mean_cosine = 1 - errors[i], .error = errors[i]};
    pair.heads = {pair.all, pair.all};
    report.push_back(pair);
  }
  return report;
}

}  // namespace

TEST_CASE("analyze layers reads 1024 tokens and takes its limit from 2-bit KIVI unless told otherwise") {
  const LayersOptions plain = read({});
  CHECK((plain.offset == 4096 && plain.tokens == 1024 && plain.pairs == 0 && plain.t == 0.6));
  CHECK_FALSE((plain.error || plain.heads));
  const LayersOptions told =
      read({"--tokens=64", "--offset", "0", "--error", "0.25", "--pairs", "3", "--heads", "--t=0.5"});
  CHECK((told.offset == 0 && told.tokens == 64 && told.pairs == 3 && told.t == 0.5 && told.heads));
  CHECK(told.error == 0.25);
}

TEST_CASE("analyze layers says what it cannot mean") {
  CHECK(contains(complaint({"--text", "t.txt"}), "--model FILE is missing"));
  CHECK(contains(complaint({"--model", "m.gguf"}), "--text FILE is missing"));
  CHECK(contains(complaint({"--error", "much"}), "--error takes a number from 0 to 2, got 'much'"));
  CHECK(contains(complaint({"--t", "1.5"}), "--t takes a number from 0 to 1"));
  CHECK(contains(complaint({"--tokens", "1"}), "--tokens takes a whole number from 2"));
  CHECK(contains(complaint({"--token", "9"}), "did you mean '--tokens'"));
}

TEST_CASE("Similar layers get a verdict with the text of the policy that merges them") {
  const std::string verdict = layers_verdict(report_with({0.1, 0.3, 0.2, 0.9}), 0.25, "--error", 0);
  CHECK(contains(verdict, "suits 4 of the 5 layers"));
  CHECK(contains(verdict, "(0.25, --error)"));
  CHECK(contains(verdict, "mini_cache:pairs=0-1+2-3\n"));
  CHECK(contains(layers_verdict(report_with({0.1, 0.3, 0.2, 0.9}), 0.25, "--error", 1), "mini_cache:pairs=0-1\n"));
}

TEST_CASE("Where no layers are similar the verdict says so, with the number behind it") {
  const std::string verdict = layers_verdict(report_with({0.8, 0.7, 0.9}), 0.4, "2-bit KIVI", 0);
  CHECK(contains(verdict, "does not suit this model"));
  CHECK(contains(verdict, "1 and 2 (mean cosine of keys 0.30"));
  CHECK(contains(verdict, "0.70 of their size, above the limit (0.40, 2-bit KIVI)"));
  CHECK(contains(verdict, "mini_cache:pairs=1-2\n"));
  CHECK(contains(layers_verdict({}, 0.4, "", 0), "nothing to merge"));
}

TEST_CASE("The table has a line per pair, and with heads one per KV head") {
  const auto report = report_with({0.8, 0.7, 0.9});
  const auto lines = [](const std::string& text) { return std::count(text.begin(), text.end(), '\n'); };
  CHECK(lines(kvc::similarity_table(report)) == 2 + 3);
  CHECK(lines(kvc::similarity_table(report, true)) == 2 + 3 * 3);
  CHECK(contains(kvc::similarity_table(report), "\n1-2          0.300"));
}
