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

const char* const DefaultPolicies =
    "full:type=f32; full; full:bits=8; full:bits=4; streaming_llm; h2o; snapkv; kivi:bits=4; kivi:bits=2; "
    "razor_attention; mini_cache; h2o | kivi:bits=4; snapkv | kivi:bits=4; snapkv | kivi:bits=2; "
    "razor_attention | kivi:bits=4,sinks=5";

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model, a GGUF file of the llama architecture"},
      {"--text", "FILE", "", "the text that windows and passkey samples are cut from"},
      {"--policies", "LIST", DefaultPolicies, "what to compare, separated by ;"},
      {"--keep", "LIST", "0.5,0.25", "fractions that policies with a budget keep, where it is not given"},
      {"--heads", "FILE", "", "the model's retrieval heads, made by `analyze heads`; else they are looked for first"},
      {"--windows", "N", "4", "stretches of the text whose likelihood is measured; 0: none"},
      {"--offset", "TOKENS", "4096", "where the first window starts"},
      {"--stride", "TOKENS", "16384", "from one window's start to the next"},
      {"--prompt", "TOKENS", "1024", "tokens of a window, and of a passkey sample, read before policies act"},
      {"--decode", "TOKENS", "128", "tokens of a window fed one by one after that, and scored"},
      {"--windows-file", "FILE", "", "windows as literal token ids, JSON: [{\"ids\": [...]}, ...]"},
      {"--passkey", "N", "8", "numbers to hide in the text and ask for; 0: none"},
      {"--samples", "FILE", "", "passkey samples as literal ids, JSON: context_ids, question_ids, answer_ids"},
      {"--prompt-only", "", "", "policies act once, after the prompt, as in kvpress"},
      {"--dense", "TYPE", "f16", "of what no policy quantizes: f32, f16 or bf16"},
      {"--fast", "", "", "Q4_0, Q4_1 and Q8_0 weights times activations of 8 bits, as llama.cpp does; AVX-512 VNNI"},
      {"--threads", "N", "0", "0: one per processor"},
      {"--json", "FILE", "", "write the results and the protocol here too"},
      {"--parameters", "", "", "print what docs/policies.md says about the parameters of every policy"},
      {"--help", "", "", "show this and the policies"},
  };
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

}  // namespace

CompareOptions read_compare_options(std::span<const char* const> words) {
  const Arguments arguments(words, known_options());
  CompareOptions options;
  options.help = arguments.has("--help");
  options.parameters = arguments.has("--parameters");
  if (options.help || options.parameters) return options;
  refuse_both(arguments, "--windows", "--windows-file");
  refuse_both(arguments, "--passkey", "--samples");
  options.model = arguments.text("--model");
  options.text = arguments.text("--text");
  options.windows_file = arguments.text("--windows-file");
  options.samples = arguments.text("--samples");
  options.json = arguments.text("--json");
  options.heads = arguments.text("--heads");
  options.windows = {.count = arguments.count("--windows", 0, 10000),
                     .offset = arguments.count("--offset", 0, Most),
                     .stride = arguments.count("--stride", 1, Most),
                     .prompt = arguments.count("--prompt", 1, Most),
                     .decode = arguments.count("--decode", 1, Most)};
  options.passkeys = options.samples.empty() ? arguments.count("--passkey", 0, 10000) : 0;
  options.threads = arguments.count("--threads", 0, 1024);
  options.arithmetic = arguments.has("--fast") ? engine::Arithmetic::fast : engine::Arithmetic::f32;
  options.comparison = {read_scalar(arguments.text("--dense")), arguments.has("--prompt-only")};
  options.contestants = read_contestants(arguments.text("--policies"), arguments.fractions("--keep"));
  if (options.model.empty())
    kvc::fail(kvc::ErrorCode::invalid_argument,
              "--model FILE is missing; sh examples/demo.sh fetches one and runs this");
  if (options.text.empty() && options.needs_text())
    kvc::fail(kvc::ErrorCode::invalid_argument, "--text FILE is missing; any plain text of some 60000 words will do");
  if (options.windows.count == 0 && options.windows_file.empty() && options.passkeys == 0 && options.samples.empty())
    kvc::fail(kvc::ErrorCode::invalid_argument, "--windows 0 and --passkey 0 leave nothing to compare");
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
      "compare: what KV-cache compression policies cost in quality, and save, on a real language model\n\n"
      "usage: compare --model FILE --text FILE [OPTIONS]\n\n" +
      option_table(known_options()) +
      "\npolicies, joined by | to act one after the other, e.g. \"snapkv:window=32 | kivi\":\n";
  for (const std::string& name : kvc::AnyPolicy::names()) help += kvc::AnyPolicy::describe(name);
  return help;
}

}  // namespace evaluation
