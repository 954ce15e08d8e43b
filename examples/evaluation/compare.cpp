#include "compare.hpp"

#include <fmt/format.h>

#include <exception>
#include <optional>

#include "analyze_heads.hpp"
#include "command.hpp"
#include "compare_options.hpp"
#include "comparison.hpp"
#include "engine/integer_kernels.hpp"
#include "engine/thread_pool.hpp"
#include "files.hpp"
#include "kvc/error.hpp"
#include "progress.hpp"
#include "report.hpp"

namespace evaluation {
namespace {

struct Work {
  std::vector<Window> windows;
  std::vector<Sample> samples;
};

/// Tells the policies that want to know them the model's retrieval heads: those of the file, else what an analysis finds.
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

Work prepare(const CompareOptions& options, const std::string& text, const engine::Model& model) {
  Work work;
  const std::vector<int> ids = model.tokenizer().encode(text, engine::SpecialTokens::as_text);
  const WindowPlan& plan = options.windows;
  work.windows = options.windows_file.empty() ? cut_windows(ids, plan) : read_windows(options.windows_file, plan);
  work.samples = options.samples.empty() ? make_samples(ids, model.tokenizer(), options.passkeys, plan.prompt)
                                         : read_samples(options.samples);
  // Nothing is run before all of it can be.
  for (const Window& window : work.windows) check_window(model, options.contestants, window);
  for (const Sample& sample : work.samples) check_sample(model, options.contestants, sample);
  return work;
}

void run(Comparison& comparison, const Work& work) {
  Progress progress;
  const auto report = [&](const std::string& detail) { progress.step(detail); };
  for (std::size_t w = 0; w < work.windows.size(); ++w) {
    progress.begin(fmt::format("window {} of {}", w + 1, work.windows.size()));
    comparison.run(work.windows[w], report);
  }
  const auto time = [&] {
    comparison.time_attention();
    comparison.time_tokens();
  };
  if (!work.windows.empty()) time();
  for (std::size_t s = 0; s < work.samples.size(); ++s) {
    progress.begin(fmt::format("passkey sample {} of {}", s + 1, work.samples.size()));
    comparison.run(work.samples[s], report);
  }
  if (work.windows.empty()) time();
}

/// Without the instructions the engine would multiply in f32, and the table would say otherwise.
void check_arithmetic(engine::Arithmetic arithmetic) {
  if (arithmetic == engine::Arithmetic::fast && engine::integer_kernels() == nullptr)
    kvc::fail(kvc::ErrorCode::incompatible, "--fast needs AVX-512 VNNI, which this processor lacks; leave it out");
}

/// Prints the table and writes the file. If one of them fails, the other still gets the results of a long run.
void publish(const std::string& table, std::optional<OutputFile>& json_file, const std::string& json) {
  std::exception_ptr failure;
  try {
    print(table);
  } catch (const kvc::Error&) {
    failure = std::current_exception();
  }
  if (json_file) json_file->write(json);
  if (failure) std::rethrow_exception(failure);
}

void compare(std::span<const char* const> words) {
  CompareOptions options = read_compare_options(words);
  if (options.help) return print(compare_help());
  if (options.parameters) return print(compare_parameters());
  check_arithmetic(options.arithmetic);
  const std::string text = options.needs_text() ? read_file(options.text, "--text") : "";
  std::optional<kvc::HeadTable> heads;
  if (!options.heads.empty()) heads = kvc::load_head_table(options.heads);
  std::optional<OutputFile> json_file;
  if (!options.json.empty()) json_file.emplace(options.json);

  engine::ThreadPool pool(options.threads);
  const engine::Model model = engine::Model::load(options.model, pool, options.arithmetic);
  const Work work = prepare(options, text, model);
  set_heads(options, heads, model);
  Comparison comparison(model, options.contestants, options.comparison);
  run(comparison, work);

  Protocol protocol{.model = options.model,
                    .text = options.windows_file.empty() ? options.text : options.windows_file,
                    .windows = options.windows,
                    .samples = work.samples.size(),
                    .dense = kvc::name_of(options.comparison.dense),
                    .prompt_only = options.comparison.prompt_only,
                    .fast = options.arithmetic == engine::Arithmetic::fast,
                    .threads = pool.threads()};
  protocol.windows.count = work.windows.size();
  const Result full = make_result(full_cache(), comparison.reference(), comparison.reference());
  std::vector<Result> results;
  for (std::size_t c = 0; c < options.contestants.size(); ++c)
    results.push_back(make_result(options.contestants[c], comparison.tallies()[c], comparison.reference()));
  publish(table(results, full, protocol), json_file, json(results, full, protocol));
}

}  // namespace

int compare_main(int argc, const char* const* argv) {
  return run_command("compare", argc, argv, compare);
}

}  // namespace evaluation
