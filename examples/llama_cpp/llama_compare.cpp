// Compares policies, and llama.cpp's own caches, on any model that llama.cpp runs: see --help.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <thread>

#include "evaluation/arguments.hpp"
#include "evaluation/command.hpp"
#include "evaluation/files.hpp"
#include "evaluation/html_page.hpp"
#include "evaluation/progress.hpp"
#include "evaluation/report.hpp"
#include "evaluation/results.hpp"
#include "kvc/simd/isa.hpp"
#include "session.hpp"

namespace {

using evaluation::OptionText;
using llama_programs::Model;
using llama_programs::Session;
using Clock = std::chrono::steady_clock;

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model: a GGUF file of any architecture that kvc::LlamaCache serves"},
      {"--text", "FILE", "", "what windows of tokens are cut from"},
      {"--policies", "LIST", "full; kivi:bits=4; snapkv | kivi:bits=4",
       "what is compared, with semicolons between; the names are those of compare --help"},
      {"--keep", "LIST", "0.25", "fractions of the tokens that policies keep which were given no budget"},
      {"--own", "LIST", "f16,f16-plain,q8_0",
       "llama.cpp's own caches to compare with, of these types, with flash attention; -plain behind a type: without "
       "it"},
      {"--prompt", "N", "1024", "tokens of a window that are read before the policies act"},
      {"--decode", "N", "128", "tokens that are fed one by one behind them, and scored"},
      {"--windows", "N", "1", "how many windows"},
      {"--offset", "N", "4096", "where the first window begins, in tokens"},
      {"--stride", "N", "16384", "from the beginning of one window to that of the next"},
      {"--batch", "N", "512", "tokens in one call of llama.cpp"},
      {"--threads", "N", "0", "how many threads compute; 0: one per processor"},
      {"--dense", "TYPE", "f16", "how kvc stores rows that no policy quantizes: f16 or f32"},
      {"--dequantize", "FILE", "",
       "first writes the model with f32 weights to FILE, and runs that: llama.cpp multiplies quantized weights by "
       "activations of 8 bits, which makes small differences large"},
      {"--json", "FILE", "", "writes the results for programs"},
      {"--html", "FILE", "", "writes them as a page"},
      {"--help", "", "", "show this"},
  };
  return all;
}

/// One of llama.cpp's own caches.
struct Own {
  std::string name;
  ggml_type type;
  bool flash;  ///< with flash attention
};

std::vector<Own> own_caches(const std::vector<std::string>& names) {
  std::vector<Own> all;
  for (const std::string& name : names) {
    const bool flash = !name.ends_with("-plain");
    const std::string word = name.substr(0, name.size() - (flash ? 0 : std::string_view("-plain").size()));
    int type = 0;
    while (type < GGML_TYPE_COUNT && word != ggml_type_name(static_cast<ggml_type>(type))) ++type;
    if (type == GGML_TYPE_COUNT)
      kvc::fail(kvc::ErrorCode::unknown_name, "--own: ggml has no type named '" + word + "'");
    all.push_back({"llama.cpp " + name, static_cast<ggml_type>(type), flash});
  }
  return all;
}

struct Options {
  std::string model;
  std::vector<evaluation::Contestant> contestants;
  std::vector<Own> own;
  evaluation::WindowPlan plan;
  llama_programs::Size size;
  kvc::Dense dense;
};

/// One cache in the comparison, kvc's or llama.cpp's.
struct Entrant {
  evaluation::Contestant contestant;
  std::optional<Own> own = std::nullopt;  ///< none: kvc's
  evaluation::Tally tally = {};
  std::vector<double> prompt_seconds = {}, token_seconds = {};
  float largest_difference = 0;                ///< to the reference, of a logit
  std::unique_ptr<Session> session = nullptr;  ///< of the window that is run
};

Options read_options(const evaluation::Arguments& arguments) {
  constexpr std::size_t Most = 10'000'000;
  for (const char* name : {"--model", "--text"})
    if (!arguments.has(name)) kvc::fail(kvc::ErrorCode::invalid_argument, std::string(name) + " FILE is missing");
  Options options;
  options.model = arguments.text("--model");
  options.contestants = evaluation::read_contestants(arguments.text("--policies"), arguments.fractions("--keep"));
  options.own = own_caches(arguments.words("--own"));
  options.plan = {.count = arguments.count("--windows", 1, Most),
                  .offset = arguments.count("--offset", 0, Most),
                  .stride = arguments.count("--stride", 1, Most),
                  .prompt = arguments.count("--prompt", 1, Most),
                  .decode = arguments.count("--decode", 2, Most)};
  std::size_t threads = arguments.count("--threads", 0, 1024);
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());
  options.size = {.tokens = options.plan.tokens(),
                  .batch = arguments.count("--batch", 1, Most),
                  .threads = static_cast<int>(threads)};
  const std::string& dense = arguments.text("--dense");
  if (dense != "f16" && dense != "f32")
    kvc::fail(kvc::ErrorCode::invalid_argument, "--dense takes f16 or f32, got '" + dense + "'");
  options.dense = {dense == "f32" ? kvc::Scalar::f32 : kvc::Scalar::f16};
  return options;
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

class Comparison {
 public:
  Comparison(const Model& model, const Options& options) : model_(&model), options_(&options) {
    entrants_.push_back({.contestant = evaluation::full_cache()});  // what the others are measured against
    for (const auto& contestant : options.contestants) entrants_.push_back({.contestant = contestant});
    for (const Own& own : options.own)
      entrants_.push_back({.contestant = {own.name, 1, kvc::AnyPolicy::parse("full")}, .own = own});
  }

  void run(const evaluation::Window& window, evaluation::Progress& progress) {
    const std::span<const llama_token> ids(window.ids);
    for (Entrant& entrant : entrants_) {
      progress.step(entrant.contestant.name + ": prompt");
      entrant.session = open(entrant);
      const auto begin = Clock::now();
      entrant.session->feed(ids.first(window.prompt));
      entrant.prompt_seconds.push_back(seconds_since(begin));
      entrant.tally.footprints.push_back(entrant.session->footprint());
      entrant.tally.footprints.back().dense_bytes = entrants_[0].tally.footprints.back().dense_bytes;
    }
    std::vector<std::vector<evaluation::Score>> scores(entrants_.size());
    for (std::size_t i = window.prompt; i + 1 < ids.size(); ++i) {
      progress.step(fmt::format("token {} of {}", i - window.prompt, ids.size() - window.prompt - 1));
      step(ids[i], static_cast<std::size_t>(ids[i + 1]), scores);
    }
    for (std::size_t e = 0; e < entrants_.size(); ++e) {
      entrants_[e].tally.windows.push_back(evaluation::window_score(scores[e]));
      entrants_[e].session.reset();
    }
  }

  evaluation::PromptResults results() {
    for (Entrant& entrant : entrants_) entrant.tally.token_ms = 1e3 * evaluation::median(entrant.token_seconds);
    const evaluation::Tally& reference = entrants_[0].tally;
    evaluation::PromptResults results{.prompt = options_->plan.prompt,
                                      .prompt_seconds = evaluation::median(entrants_[0].prompt_seconds),
                                      .repeat_seconds = std::nullopt,
                                      .full = evaluation::make_result(entrants_[0].contestant, reference, reference),
                                      .results = {}};
    for (std::size_t e = 1; e < entrants_.size(); ++e)
      results.results.push_back(evaluation::make_result(entrants_[e].contestant, entrants_[e].tally, reference));
    return results;
  }

  /// What the table of all programs has no columns for.
  std::string more() const {
    std::string text = "\nprompt: seconds to read it; logit: the largest difference to the full cache in f32\n";
    for (const Entrant& entrant : entrants_)
      text +=
          fmt::format("{:<44} prompt {:8.2f} s   token {:8.2f} ms   logit {:.2g}\n", entrant.contestant.name,
                      evaluation::median(entrant.prompt_seconds), *entrant.tally.token_ms, entrant.largest_difference);
    return text;
  }

 private:
  std::unique_ptr<Session> open(const Entrant& entrant) const {
    if (entrant.own)
      return std::make_unique<llama_programs::OwnSession>(*model_, options_->size, entrant.own->type,
                                                          entrant.own->flash);
    const bool reference = &entrant == entrants_.data();
    return std::make_unique<llama_programs::ServedSession>(
        *model_, options_->size, entrant.contestant.policy,
        kvc::CacheOptions{.dense = reference ? kvc::Dense{kvc::Scalar::f32} : options_->dense});
  }

  /// Feeds a token to all, one after the other, so that whatever disturbs the machine meets all of them.
  void step(llama_token token, std::size_t target, std::vector<std::vector<evaluation::Score>>& scores) {
    for (std::size_t e = 0; e < entrants_.size(); ++e) {
      Entrant& entrant = entrants_[e];
      const auto begin = Clock::now();
      entrant.session->feed({&token, 1});
      entrant.token_seconds.push_back(seconds_since(begin));
      const std::span<const float> logits = entrant.session->logits();
      if (e == 0) prediction_.set(logits);
      const std::span<const float> expected = entrants_[0].session->logits();
      for (std::size_t i = 0; i < logits.size(); ++i)
        entrant.largest_difference = std::max(entrant.largest_difference, std::abs(logits[i] - expected[i]));
      scores[e].push_back(prediction_.score(logits, target));
    }
  }

  const Model* model_;
  const Options* options_;
  std::vector<Entrant> entrants_;  ///< the reference first
  evaluation::ReferencePrediction prediction_;
};

evaluation::Protocol protocol_of(const Options& options, const std::string& text) {
  evaluation::Protocol protocol;
  protocol.model = options.model;
  protocol.texts = {text};
  protocol.machine = fmt::format("llama.cpp, {}", kvc::to_string(kvc::current_isa()));
  protocol.windows = options.plan;
  protocol.dense = kvc::name_of(options.dense.type);
  protocol.threads = static_cast<std::size_t>(options.size.threads);
  return protocol;
}

void compare(std::span<const char* const> words) {
  const evaluation::Arguments arguments(words, known_options());
  if (arguments.has("--help"))
    return evaluation::print(
        "llama_compare: compares what policies of kvc, and llama.cpp's own caches, do to a model that llama.cpp "
        "computes\n\nusage: llama_compare --model FILE --text FILE [OPTIONS]\n\n" +
        evaluation::option_table(known_options()));
  Options options = read_options(arguments);
  std::optional<evaluation::OutputFile> json, html;
  if (arguments.has("--json")) json.emplace(arguments.text("--json"));
  if (arguments.has("--html")) html.emplace(arguments.text("--html"));
  if (arguments.has("--dequantize")) {
    llama_programs::dequantize(options.model, arguments.text("--dequantize"));
    options.model = arguments.text("--dequantize");
  }
  const Model model(options.model);
  const std::string text = evaluation::read_file(arguments.text("--text"), "--text");
  const std::vector<evaluation::Window> windows = evaluation::cut_windows(model.tokens_of(text, false), options.plan);

  Comparison comparison(model, options);
  {
    evaluation::Progress progress;
    for (std::size_t w = 0; w < windows.size(); ++w) {
      progress.begin(fmt::format("window {} of {}", w + 1, windows.size()),
                     static_cast<double>(w) / static_cast<double>(windows.size()));
      comparison.run(windows[w], progress);
    }
  }
  const evaluation::Report report{protocol_of(options, arguments.text("--text")), {comparison.results()}};
  evaluation::print(evaluation::table(report) + comparison.more());
  if (json) json->write(evaluation::to_json(report));
  if (html) html->write(evaluation::html_page(report));
}

}  // namespace

int main(int argc, char** argv) {
  return evaluation::run_command("llama_compare", argc, argv, compare);
}
