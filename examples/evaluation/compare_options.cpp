#include "compare_options.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "arguments.hpp"
#include "h2o_mask.hpp"
#include "kvc/error.hpp"

namespace evaluation {
namespace {

/// More tokens than any text of ours, few enough that sums of them cannot overflow.
constexpr std::size_t Most = 1'000'000'000;

/// Few enough to be read at a glance.
const char* const DefaultPolicies =
    "full; full:bits=4; streaming_llm; h2o; snapkv; razor_attention; kivi:bits=4; kivi:bits=2; "
    "snapkv | kivi:bits=4; compact:keep=0.155";
/// What `--policies all` begins with: policies at parameters of interest, and some in a row.
const char* const ChosenPolicies =
    "full:type=f32; full; full:bits=8; full:bits=4; full:ggml=q8_0; full:ggml=q4_0; streaming_llm; h2o; snapkv; knorm; "
    "ada_kv:base=snapkv; razor_attention; razor_attention:compensation=none; mini_cache; quest:tokens=256; "
    "kivi:bits=8; kivi:bits=4; kivi:bits=3; "
    "kivi:bits=2; streaming_llm | kivi:bits=4; h2o | kivi:bits=4; snapkv | kivi:bits=4; snapkv | kivi:bits=2; "
    "razor_attention | kivi:bits=4,sinks=5";

/// What is compared, and on what.
std::vector<OptionText> input_options() {
  return {
      {"--model", "FILE", "", "the language model: a GGUF file of the llama architecture", "input"},
      {"--text", "FILES", "",
       "a long plain text, out of which windows and passkey samples are cut, or several, separated by ,"},
      {"--tune-texts", "FILES", "",
       "instead of --text: texts for settling parameters. Their figures say that they are no report, and no page is "
       "made "
       "of them, so that what was tuned on is never mixed with what is shown"},
      {"--policies", "LIST", DefaultPolicies,
       "the policies to compare, separated by ;. The word all stands for the library's, and some in a row",
       "what is compared"},
      {"--keep", "LIST", "0.25",
       "how much a policy keeps that has a budget and whose text does not say how large: fractions of the tokens seen. "
       "Every such policy is compared at each of them"},
      {"--heads", "FILE", "",
       "the model's retrieval heads, as `analyze heads --out FILE` writes them, for policies that must know them "
       "(razor_attention). Without the file they are looked for first, which takes a while"},
      {"--prompt-only", "", "",
       "let policies act once, at the end of the prompt, and no more while tokens are fed after it, as kvpress does"},
      {"--dense", "TYPE", "f16", "how numbers are stored that no policy quantizes: f32, f16 or bf16"}};
}

/// What is cut out of the texts.
std::vector<OptionText> text_options() {
  return {
      {"--windows", "N", "4", "how many windows of each text to measure; 0: none", "windows"},
      {"--offset", "TOKENS", "4096", "where in the text the first window starts"},
      {"--stride", "TOKENS", "16384", "how far the start of a window is from the start of the one before"},
      {"--prompt", "LIST", "1024",
       "how long the prompt of a window is; passkey samples are as long. Of several lengths, as in 1024,4096, each has "
       "a "
       "table of its own"},
      {"--decode", "TOKENS", "128", "how many tokens are fed one by one after the prompt, and predicted"},
      {"--windows-file", "FILE", "", "windows as token ids instead of a text, in JSON: [{\"ids\": [...]}, ...]"},
      {"--passkey", "N", "8", "how many prompts to hide numbers in; 0: none", "passkeys"},
      {"--needles", "N", "3",
       "how many numbers to hide in each of them, at different depths. Each is asked for in turn, of the same "
       "compressed "
       "prompt"},
      {"--samples", "FILE", "",
       "samples as token ids instead of a text, in JSON: [{\"context_ids\": [...], \"question_ids\": [...], "
       "\"answer_ids\": [...]}, ...], or with a list \"questions\" of such pairs"}};
}

/// How it is run, and what becomes of the results.
std::vector<OptionText> run_options() {
  return {
      {"--fast", "", "",
       "multiply the model's weights of 4 and 8 bits (Q4_0, Q4_1, Q8_0) by activations rounded to 8 bits, as llama.cpp "
       "does. That is faster and a little less exact; it needs AVX-512 VNNI",
       "the run"},
      {"--threads", "N", "0", "how many threads compute; 0: one per processor"},
      {"--json", "FILE", "", "write the results, and how they were measured, to this file too", "results"},
      {"--html", "FILE", "",
       "make a page of the results: plots, tables, and what was done; one file that needs no network"},
      {"--svg", "FILE", "", "draw quality against bytes, the main plot of that page, as a picture of its own"},
      {"--from", "FILES", "",
       "run nothing, but take the results of earlier runs, as --json wrote them, of one file or of several, separated "
       "by ,"},
      {"--parameters", "", "", "print the table of every policy's parameters, as docs/policies.md has it", "help"},
      {"--help", "", "", "show this and the policies"}};
}

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = [] {
    std::vector<OptionText> options = input_options();
    for (const auto& more : {text_options(), run_options()}) options.insert(options.end(), more.begin(), more.end());
    return options;
  }();
  return all;
}

void refuse_both(const Arguments& arguments, const char* one, const char* other) {
  if (arguments.has(one) && arguments.has(other))
    kvc::fail(kvc::ErrorCode::invalid_argument, fmt::format("{} and {} exclude each other", one, other));
}

kvc::Scalar read_scalar(const std::string& word) {
  const auto type = kvc::TextOf<kvc::Scalar>::read(word);
  if (!type)
    kvc::fail(kvc::ErrorCode::invalid_argument,
              fmt::format("--dense takes {}, got '{}'", kvc::TextOf<kvc::Scalar>::expected(), word));
  return *type;
}

/// The chosen ones, and every other policy that is known and can run here, as it is by default.
std::string all_policies() {
  std::string list = ChosenPolicies;
  const auto is_there = [&](const std::string& name) {
    return std::ranges::any_of(read_contestants(list, {1}), [&](const Contestant& contestant) {
      return contestant.name == name || contestant.name.starts_with(name + ":") ||
             contestant.name.starts_with(name + " ");
    });
  };
  for (const std::string& name : kvc::AnyPolicy::names()) {
    if (is_there(name) || name == H2OMask::name.word) continue;  // the mask is there for tests of H2O
    const kvc::AnyPolicy policy = kvc::AnyPolicy::parse(name);
    const auto is_scored = [](const auto& stage) { return stage->needs().external_scores; };
    if (std::ranges::none_of(policy.stages(), is_scored)) list += "; " + name;
  }
  return list;
}

/// The options that name files.
void read_files(const Arguments& arguments, CompareOptions& options) {
  refuse_both(arguments, "--windows", "--windows-file");
  refuse_both(arguments, "--passkey", "--samples");
  options.json = arguments.text("--json");
  options.html = arguments.text("--html");
  options.svg = arguments.text("--svg");
  options.from = arguments.words("--from");
  for (const char* runs : {"--model", "--text", "--tune-texts", "--windows-file", "--samples", "--policies"})
    refuse_both(arguments, "--from", runs);
  for (const char* shown : {"--text", "--windows-file", "--samples", "--html", "--svg"})
    refuse_both(arguments, "--tune-texts", shown);
  options.model = arguments.text("--model");
  options.tuning = arguments.has("--tune-texts");
  options.texts = arguments.words(options.tuning ? "--tune-texts" : "--text");
  options.windows_file = arguments.text("--windows-file");
  options.samples = arguments.text("--samples");
  options.heads = arguments.text("--heads");
}

void check_work(const CompareOptions& options) {
  if (options.model.empty())
    kvc::fail(kvc::ErrorCode::invalid_argument,
              "--model FILE is missing; sh examples/demo.sh fetches one and runs this");
  if (options.texts.empty() && options.needs_text())
    kvc::fail(kvc::ErrorCode::invalid_argument, "--text FILE is missing; any plain text of some 60000 words will do");
  if (options.windows.count == 0 && options.windows_file.empty() && options.passkeys == 0 && options.samples.empty())
    kvc::fail(kvc::ErrorCode::invalid_argument, "--windows 0 and --passkey 0 leave nothing to compare");
  if (!options.samples.empty() && options.prompts.size() > 1)
    kvc::fail(kvc::ErrorCode::invalid_argument,
              "--samples holds prompts of its own length; give one length with --prompt, not several");
}

}  // namespace

CompareOptions read_compare_options(std::span<const char* const> words) {
  const Arguments arguments(words, known_options());
  CompareOptions options;
  options.help = arguments.has("--help");
  options.parameters = arguments.has("--parameters");
  if (options.help || options.parameters) return options;
  read_files(arguments, options);
  if (!options.from.empty()) return options;
  options.prompts = arguments.counts("--prompt", 1, Most);
  options.windows = {.count = arguments.count("--windows", 0, 10000),
                     .offset = arguments.count("--offset", 0, Most),
                     .stride = arguments.count("--stride", 1, Most),
                     .prompt = options.prompts[0],
                     .decode = arguments.count("--decode", 1, Most)};
  options.passkeys = options.samples.empty() ? arguments.count("--passkey", 0, 10000) : 0;
  options.needles = arguments.count("--needles", 1, MostNeedles);
  options.threads = arguments.count("--threads", 0, 1024);
  options.arithmetic = arguments.has("--fast") ? engine::Arithmetic::fast : engine::Arithmetic::f32;
  options.comparison = {read_scalar(arguments.text("--dense")), arguments.has("--prompt-only")};
  const std::string& policies = arguments.text("--policies");
  options.contestants = read_contestants(policies == "all" ? all_policies() : policies, arguments.fractions("--keep"));
  check_work(options);
  return options;
}

std::string compare_parameters() {
  std::string text;
  for (const std::string& name : kvc::AnyPolicy::names())
    text += (text.empty() ? "" : "\n") + kvc::AnyPolicy::markdown(name);
  return text;
}

std::string compare_help() {
  add_h2o_mask();
  std::string help =
      "compare: measures what KV-cache compression policies save, and what they cost in quality, on a language "
      "model\n\n"
      "usage: compare --model FILE --text FILE [OPTIONS]\n\n"
      "for example, two policies and both in a row, each keeping half of the tokens:\n"
      "  compare --model model.gguf --text book.txt --policies \"h2o; kivi:bits=4; h2o | kivi:bits=4\" --keep 0.5\n"
      "a page of all policies at three sizes, over two lengths of prompts (it takes a while):\n"
      "  compare --model model.gguf --text book.txt --policies all --keep 0.5,0.25,0.125 --prompt 1024,4096 --html "
      "page.html\n\n"
      "Every policy gets a cache of its own, and all caches get the same text. Two things are measured:\n"
      "  windows   The model reads a prompt, and the policies compress it. The tokens that follow in the text are then "
      "fed\n"
      "            one by one. How well does the model predict the next one over each of the caches?\n"
      "  passkeys  Numbers are hidden in a piece of the text. The policies compress the piece; then the model is asked "
      "for\n"
      "            each of them. Does it find them?\n"
      "The table of results ends with a legend of its columns.\n\n" +
      option_table(known_options()) +
      "\npolicies, with their parameters and defaults; several act one after the other if they are joined by |, as in\n"
      "\"snapkv:window=32 | kivi:bits=2\":\n";
  for (const std::string& name : kvc::AnyPolicy::names()) help += kvc::AnyPolicy::describe(name);
  return help;
}

}  // namespace evaluation
