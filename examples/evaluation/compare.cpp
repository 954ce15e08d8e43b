#include "compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <fstream>
#include <optional>

#include "analyze_heads.hpp"
#include "command.hpp"
#include "compare_options.hpp"
#include "comparison.hpp"
#include "engine/integer_kernels.hpp"
#include "engine/thread_pool.hpp"
#include "files.hpp"
#include "html_page.hpp"
#include "kvc/error.hpp"
#include "kvc/simd/isa.hpp"
#include "progress.hpp"
#include "quality_plot.hpp"
#include "report.hpp"
#include "results.hpp"

namespace evaluation {
namespace {

/// What is run at one length of prompts.
struct Work {
  std::size_t prompt = 0;
  std::vector<Window> windows;
  std::vector<Sample> samples;
};

/// Tells policies that want to know them the model's retrieval heads: those of the file, else what an analysis finds.
void set_heads(CompareOptions& options, const std::optional<kvc::HeadTable>& given, const engine::Model& model) {
  std::optional<kvc::HeadTable> heads = given;
  for (Contestant& contestant : options.contestants) {
    if (!contestant.policy.wants<kvc::HeadTable>()) continue;
    if (!heads) {
      const HeadsOptions analysis;
      tell(fmt::format("compare: looking for the model's retrieval heads ({} tokens; --heads FILE saves the time)\n",
                       analysis.text.tokens()));
      heads = kvc::retrieval_heads(score_heads(model, analysis), analysis.shares);
    }
    contestant.policy.set_default(*heads);
  }
}

/// The windows of every text in turn, and samples out of the texts by turns.
Work prepare(const CompareOptions& options, const std::vector<std::vector<int>>& texts, const engine::Model& model,
             std::size_t prompt) {
  Work work{prompt, {}, {}};
  WindowPlan plan = options.windows;
  plan.prompt = prompt;
  if (!options.windows_file.empty()) work.windows = read_windows(options.windows_file, plan);
  if (!options.samples.empty()) work.samples = read_samples(options.samples);
  for (std::size_t t = 0; t < texts.size(); ++t) {
    if (options.windows_file.empty())
      for (Window& window : cut_windows(texts[t], plan)) work.windows.push_back(std::move(window));
    const std::size_t share = (options.passkeys + texts.size() - 1 - t) / texts.size();
    for (Sample& sample : make_samples(texts[t], model.tokenizer(), {share, options.needles, prompt}))
      work.samples.push_back(std::move(sample));
  }
  // Nothing is run before all of it can be.
  for (const Window& window : work.windows) check_window(model, options.contestants, window);
  for (const Sample& sample : work.samples) check_sample(model, options.contestants, sample);
  return work;
}

/// How far a run is: prompts count by their tokens.
struct Way {
  double done = 0, all = 0;

  double share() const { return all == 0 ? 0 : done / all; }
};

double length_of(const Work& work) {
  return static_cast<double>(work.prompt * (work.windows.size() + work.samples.size()));
}

void run(Comparison& comparison, const Work& work, Progress& progress, const std::string& where, Way& way) {
  const auto report = [&](const std::string& detail) { progress.step(detail); };
  for (std::size_t w = 0; w < work.windows.size(); ++w) {
    progress.begin(fmt::format("{}window {} of {}", where, w + 1, work.windows.size()), way.share());
    comparison.run(work.windows[w], report);
    way.done += static_cast<double>(work.prompt);
  }
  const auto time = [&] {
    progress.begin(where + "timing tokens", way.share());
    comparison.time_attention();
    comparison.time_tokens();
  };
  if (!work.windows.empty()) time();
  for (std::size_t s = 0; s < work.samples.size(); ++s) {
    progress.begin(fmt::format("{}passkey prompt {} of {}", where, s + 1, work.samples.size()), way.share());
    comparison.run(work.samples[s], report);
    way.done += static_cast<double>(work.prompt);
  }
  if (work.windows.empty()) time();
}

PromptResults results_of(const Comparison& comparison, std::size_t prompt) {
  PromptResults results{.prompt = prompt,
                        .prompt_seconds = median(comparison.prompt_seconds()),
                        .repeat_seconds = std::nullopt,
                        .full = make_result(full_cache(), comparison.reference(), comparison.reference()),
                        .results = {}};
  if (!comparison.repeat_seconds().empty()) results.repeat_seconds = median(comparison.repeat_seconds());
  for (std::size_t c = 0; c < comparison.contestants().size(); ++c)
    results.results.push_back(
        make_result(comparison.contestants()[c], comparison.tallies()[c], comparison.reference()));
  return results;
}

/// Without the instructions the engine would multiply in f32, and the table would say otherwise.
void check_arithmetic(engine::Arithmetic arithmetic) {
  if (arithmetic == engine::Arithmetic::fast && engine::integer_kernels() == nullptr)
    kvc::fail(kvc::ErrorCode::incompatible, "--fast needs AVX-512 VNNI, which this processor lacks; leave it out");
}

/// The processor's name, where the system tells it, and the instruction set that the library chose.
std::string machine() {
  std::ifstream file("/proc/cpuinfo");
  std::string name;
  for (std::string line; name.empty() && std::getline(file, line);)
    if (line.starts_with("model name") && line.find(": ") != line.npos) name = line.substr(line.find(": ") + 2) + ", ";
  return name + kvc::to_string(kvc::current_isa());
}

/// The command line as a shell would take it.
std::string command_line(std::span<const char* const> words) {
  std::string line = "compare";
  for (const std::string_view word : words) {
    const bool plain = !word.empty() && std::ranges::all_of(word, [](char c) {
      return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
             std::string_view("-_./,=:").find(c) != std::string_view::npos;
    });
    line += plain ? fmt::format(" {}", word) : fmt::format(" \"{}\"", word);
  }
  return line;
}

Protocol protocol_of(const CompareOptions& options, const std::vector<Work>& works, std::size_t threads) {
  Protocol protocol{.model = options.model,
                    .texts = options.texts,
                    .commands = {},
                    .machine = machine(),
                    .tuning = options.tuning,
                    .windows = options.windows,
                    .samples = works[0].samples.size(),
                    .needles = works[0].samples.empty() ? 0 : works[0].samples[0].questions.size(),
                    .dense = kvc::name_of(options.comparison.dense),
                    .prompt_only = options.comparison.prompt_only,
                    .fast = options.arithmetic == engine::Arithmetic::fast,
                    .threads = threads};
  for (const std::string& file : {options.windows_file, options.samples})
    if (!file.empty()) protocol.texts.push_back(file);
  protocol.windows.count = works[0].windows.size();
  return protocol;
}

Report measure(CompareOptions& options) {
  check_arithmetic(options.arithmetic);
  std::vector<std::string> texts;
  if (options.needs_text())
    for (const std::string& path : options.texts)
      texts.push_back(read_file(path, options.tuning ? "--tune-texts" : "--text"));
  std::optional<kvc::HeadTable> heads;
  if (!options.heads.empty()) heads = kvc::load_head_table(options.heads);

  engine::ThreadPool pool(options.threads);
  const engine::Model model = engine::Model::load(options.model, pool, options.arithmetic);
  std::vector<std::vector<int>> ids;
  for (const std::string& text : texts) ids.push_back(model.tokenizer().encode(text, engine::SpecialTokens::as_text));
  std::vector<Work> works;
  for (const std::size_t prompt : options.prompts) works.push_back(prepare(options, ids, model, prompt));
  set_heads(options, heads, model);

  Report report{protocol_of(options, works, pool.threads()), {}};
  Progress progress;
  Way way;
  for (const Work& work : works) way.all += length_of(work);
  for (const Work& work : works) {
    Comparison comparison(model, options.contestants, options.comparison);
    run(comparison, work, progress, works.size() == 1 ? "" : fmt::format("prompts of {}: ", work.prompt), way);
    report.lengths.push_back(results_of(comparison, work.prompt));
  }
  return report;
}

/// Prints the table and writes the files. If one of them fails, the others still get the results of a long run.
class Publication {
 public:
  explicit Publication(const CompareOptions& options) {
    if (!options.json.empty()) json_.emplace(options.json);
    if (!options.html.empty()) html_.emplace(options.html);
    if (!options.svg.empty()) svg_.emplace(options.svg);
  }
  void publish(const Report& report) {
    attempt([&] { print(table(report)); });
    if (json_) attempt([&] { json_->write(to_json(report)); });
    if (html_) attempt([&] { html_->write(html_page(report)); });
    if (svg_) attempt([&] { svg_->write(quality_plot(report.lengths.at(0), report.protocol, {.standalone = true})); });
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  template <class Write>
  void attempt(Write write) {
    try {
      write();
    } catch (const kvc::Error&) {
      if (!failure_) failure_ = std::current_exception();
    }
  }

  std::optional<OutputFile> json_, html_, svg_;
  std::exception_ptr failure_;
};

void compare(std::span<const char* const> words) {
  CompareOptions options = read_compare_options(words);
  if (options.help) return print(compare_help());
  if (options.parameters) return print(compare_parameters());
  if (!options.from.empty()) {
    const Report report = read_reports(options.from);
    if (report.protocol.tuning && !(options.html.empty() && options.svg.empty()))
      kvc::fail(
          kvc::ErrorCode::invalid_argument,
          "--from: these are figures of texts for tuning, of which no page is made; measure other texts with --text");
    return Publication(options).publish(report);
  }
  Publication publication(options);
  Report report = measure(options);
  report.protocol.commands = {command_line(words)};
  publication.publish(report);
}

}  // namespace

int compare_main(int argc, const char* const* argv) {
  return run_command("compare", argc, argv, compare);
}

}  // namespace evaluation
