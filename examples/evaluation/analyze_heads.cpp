#include "analyze_heads.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <random>

#include "arguments.hpp"
#include "command.hpp"
#include "engine/sequences.hpp"
#include "engine/thread_pool.hpp"
#include "files.hpp"
#include "kvc/error.hpp"
#include "kvc/kvc.hpp"
#include "kvc/named/text.hpp"

namespace evaluation {
namespace {

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model: a GGUF file of the llama architecture"},
      {"--block", "TOKENS", "400", "how many random tokens the repeated block has; the paper takes 2500"},
      {"--repeats", "N", "4", "how often the block stands in the text"},
      {"--seed", "N", "1", "another seed makes other random tokens"},
      {"--induction", "SHARE", "0.14", "the share of the KV heads that retrieve by their induction score"},
      {"--echo", "SHARE", "0.01", "the share of the KV heads that retrieve by their echo score"},
      {"--out", "FILE", "", "write the table of retrieval heads to this file, for razor_attention:heads=FILE"},
      {"--threads", "N", "0", "how many threads compute; 0: one per processor"},
      {"--help", "", "", "show this"},
  };
  return all;
}

std::string help() {
  return "analyze heads: finds the heads that look back for what was said before, and so must keep every token\n\n"
         "usage: analyze heads --model FILE [--out FILE] [OPTIONS]\n\n" +
         option_table(known_options()) +
         "\nThe model reads a block of random tokens several times over. Every token after the first block has stood "
         "in the text\nbefore, so a head can look back for it in two ways, and each has a score:\n"
         "  induction  how much attention goes to the tokens that followed the same token earlier\n"
         "  echo       how much attention goes to the same token earlier\n"
         "The KV heads with the highest scores are the model's retrieval heads.\n";
}

double share(const Arguments& arguments, const std::string& name) {
  const auto value = kvc::TextOf<double>::read(arguments.text(name));
  if (!value || *value < 0 || *value > 1)
    kvc::fail(kvc::ErrorCode::invalid_argument,
              fmt::format("{} takes a share in [0, 1], got '{}'", name, arguments.text(name)));
  return *value;
}

/// "L18H6 0.90, L17H3 0.85, …": the best query heads.
std::string best_heads(std::span<const float> scores, std::size_t query_heads) {
  constexpr std::size_t Shown = 10;
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::stable_sort(order, [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  order.resize(std::min(order.size(), Shown));
  std::string text;
  for (const std::size_t head : order)
    text +=
        fmt::format("{}L{}H{} {:.2f}", text.empty() ? "" : ", ", head / query_heads, head % query_heads, scores[head]);
  return text;
}

/// The table with what it was made from, as comments.
std::string file_content(const kvc::HeadTable& table, const HeadsOptions& options) {
  return fmt::format(
      "# Retrieval heads of {}\n# analyze heads --block {} --repeats {} --seed {} --induction {} --echo {}\n{}",
      options.model, options.text.block, options.text.repeats, options.seed, options.shares.induction,
      options.shares.echo, table.to_string());
}

}  // namespace

HeadsOptions read_heads_options(std::span<const char* const> words) {
  const Arguments arguments(words, known_options());
  HeadsOptions options;
  options.help = arguments.has("--help");
  if (options.help) return options;
  options.model = arguments.text("--model");
  options.out = arguments.text("--out");
  options.text = {arguments.count("--block", 2, 1'000'000), arguments.count("--repeats", 2, 1000)};
  options.seed = arguments.count("--seed", 0, 1'000'000'000);
  options.shares = {share(arguments, "--induction"), share(arguments, "--echo")};
  options.threads = arguments.count("--threads", 0, 1024);
  if (options.model.empty()) kvc::fail(kvc::ErrorCode::invalid_argument, "--model FILE is missing");
  return options;
}

std::vector<int> repeated_ids(const kvc::RepeatedBlock& text, std::size_t vocabulary, int bos, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int> ids{bos};
  // The standard's distributions differ between libraries; a remainder does not.
  for (std::size_t i = 0; i < text.block; ++i) ids.push_back(static_cast<int>(random() % vocabulary));
  for (std::size_t repeat = 1; repeat < text.repeats; ++repeat)
    for (std::size_t i = 0; i < text.block; ++i) ids.push_back(ids[1 + i]);
  return ids;
}

kvc::HeadScores score_heads(const engine::Model& model, const HeadsOptions& options) {
  const engine::Config& config = model.config();
  const kvc::RepeatedBlock& text = options.text;
  if (text.tokens() > config.context)
    kvc::fail(kvc::ErrorCode::invalid_argument,
              fmt::format("a block of {} tokens, {} times, makes {} tokens, more than the model's context of {}; ask "
                          "for a smaller --block",
                          text.block, text.repeats, text.tokens(), config.context));
  const std::vector<int> ids = repeated_ids(text, config.vocabulary, model.tokenizer().bos().value_or(1), options.seed);
  std::vector<kvc::Position> positions(ids.size());
  std::iota(positions.begin(), positions.end(), 0);

  const kvc::CacheShape shape = model.cache_shape();
  kvc::HeadScorer scorer(shape, text);
  kvc::KVCache cache(shape, kvc::Full{.type = kvc::Scalar::f32}, {.executor = &model.executor()});
  const auto attend = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
    scorer.add(layer, rows.q, rows.k, model.executor());
    cache.prefill(layer, rows, out);
  };
  engine::Workspace workspace;
  model.forward(ids, positions, attend, {}, workspace);
  return scorer.scores();
}

void analyze_heads(std::span<const char* const> words) {
  const HeadsOptions options = read_heads_options(words);
  if (options.help) return print(help());
  std::optional<OutputFile> file;
  if (!options.out.empty()) file.emplace(options.out);
  engine::ThreadPool pool(options.threads);
  const engine::Model model = engine::Model::load(options.model, pool);
  const kvc::HeadScores scores = score_heads(model, options);
  const kvc::HeadTable table = kvc::retrieval_heads(scores, options.shares);

  if (file) file->write(file_content(table, options));
  print(fmt::format("{}: {} tokens, a block of {} random ones {} times (seed {})\n", options.model,
                    options.text.tokens(), options.text.block, options.text.repeats, options.seed));
  print(fmt::format("best by induction: {}\n", best_heads(scores.induction, scores.query_heads)));
  print(fmt::format("best by echo:      {}\n", best_heads(scores.echo, scores.query_heads)));
  print(fmt::format("\n{} of {} KV heads retrieve ({:.1f} %):\n{}", table.count(), table.layers() * table.kv_heads(),
                    100 * table.share(), table.to_string()));
  if (file) print(fmt::format("\nwritten to {}; use it as razor_attention:heads={}\n", options.out, options.out));
}

}  // namespace evaluation
