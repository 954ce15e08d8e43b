// Lets a language model write, with its cache under a policy: see --help.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "engine/model.hpp"
#include "engine/sequences.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/arguments.hpp"
#include "evaluation/command.hpp"
#include "evaluation/repeat_probe.hpp"
#include "evaluation/scoring.hpp"
#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"

namespace {

using evaluation::OptionText;

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model: a GGUF file of the llama architecture"},
      {"--prompt", "TEXT", "", "what the model continues or, with --chat, answers"},
      {"--policy", "TEXT", "full", "how the cache is compressed; \"snapkv:budget=256 | kivi:bits=4\" for example"},
      {"--tokens", "N", "200", "how many tokens to write at most"},
      {"--chat", "", "", "put the prompt into the form (ChatML) that instruction models expect"},
      {"--threads", "N", "0", "how many threads compute; 0: one per processor"},
      {"--help", "", "", "show this and the policies"},
  };
  return all;
}

std::string help() {
  std::string text =
      "generate: lets a language model write, with its KV cache compressed by a policy\n\n"
      "usage: generate --model FILE --prompt TEXT [OPTIONS]\n\n" +
      evaluation::option_table(known_options()) +
      "\npolicies, with their parameters and defaults; several act one after the other if they are joined by |:\n";
  for (const std::string& name : kvc::AnyPolicy::names()) text += kvc::AnyPolicy::describe(name);
  return text;
}

/// One user turn in ChatML, ready for the answer. The user's own words cannot act as control tokens.
std::vector<int> chat_prompt(const engine::Tokenizer& tokenizer, const std::string& words) {
  if (!tokenizer.find("<|im_start|>"))
    kvc::fail(kvc::ErrorCode::incompatible, "--chat: this model's tokenizer has no <|im_start|>; leave --chat out");
  std::vector<int> ids = tokenizer.encode("<|im_start|>user\n");
  for (const int id : tokenizer.encode(words, engine::SpecialTokens::as_text)) ids.push_back(id);
  for (const int id : tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n")) ids.push_back(id);
  return ids;
}

std::vector<int> prompt_ids(const engine::Tokenizer& tokenizer, const evaluation::Arguments& arguments) {
  const std::string& words = arguments.text("--prompt");
  if (words.empty()) kvc::fail(kvc::ErrorCode::invalid_argument, "--prompt TEXT is missing or empty");
  if (arguments.has("--chat")) return chat_prompt(tokenizer, words);
  std::vector<int> ids = tokenizer.encode(words, engine::SpecialTokens::as_text);
  if (tokenizer.bos()) ids.insert(ids.begin(), *tokenizer.bos());
  if (ids.empty()) kvc::fail(kvc::ErrorCode::invalid_argument, "--prompt has no token that the model knows");
  return ids;
}

class Stopwatch {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Writes up to `limit` tokens to standard output, always the likeliest; returns how many.
std::size_t write_answer(const engine::Model& model, kvc::CacheCore& cache, std::vector<float>& logits,
                         std::size_t position, std::size_t limit) {
  engine::Workspace workspace;
  kvc::CacheCore* const batch[] = {&cache};
  limit = std::min(limit, model.config().context - position);
  for (std::size_t written = 0; written < limit; ++written, ++position) {
    const int token = static_cast<int>(evaluation::argmax(logits));
    if (token == model.tokenizer().eos()) return written;
    evaluation::print(model.tokenizer().decode(token));
    const auto place = static_cast<kvc::Position>(position);
    engine::step(model, batch, {&token, 1}, {&place, 1}, {logits.data(), 1, logits.size()}, workspace);
  }
  return limit;
}

/// Feeds the prompt to the cache. A policy that wants a probe sees the prompt repeated before it acts.
void read_prompt(const engine::Model& model, kvc::CacheCore& cache, std::span<const int> prompt,
                 kvc::Rows<float> logits, engine::Workspace& workspace, const std::string& policy) {
  const bool probed = evaluation::wants_probe(cache.stages());
  if (probed) evaluation::check_repetition(model, prompt, policy);
  engine::prefill(model, cache, prompt, logits, workspace, {.last_chunk = !probed});
  if (!probed) return;
  kvc::CacheCore* const caches[] = {&cache};
  evaluation::repeat_prompt(model, caches, prompt, workspace);
  cache.compress();
}

void generate(std::span<const char* const> words) {
  const evaluation::Arguments arguments(words, known_options());
  if (arguments.has("--help")) return evaluation::print(help());
  const auto policy = kvc::AnyPolicy::parse(arguments.text("--policy"));
  const std::size_t limit = arguments.count("--tokens", 1, 1'000'000);
  if (!arguments.has("--model")) kvc::fail(kvc::ErrorCode::invalid_argument, "--model FILE is missing");

  engine::ThreadPool pool(arguments.count("--threads", 0, 1024));
  const engine::Model model = engine::Model::load(arguments.text("--model"), pool);
  const std::vector<int> prompt = prompt_ids(model.tokenizer(), arguments);
  kvc::KVCache cache(model.cache_shape(), policy, {.executor = &pool});

  std::vector<float> logits(model.config().vocabulary);
  const Stopwatch reading;
  engine::Workspace workspace;
  read_prompt(model, cache, prompt, {logits.data(), 1, logits.size()}, workspace, policy.to_string());
  const double read_seconds = reading.seconds();
  const Stopwatch writing;
  const std::size_t written = write_answer(model, cache, logits, prompt.size(), limit);
  const double write_seconds = writing.seconds();

  const kvc::Stats stats = cache.stats();
  evaluation::print(fmt::format("\n\n{}: {} tokens read at {:.1f} tokens/s, {} written at {:.1f} tokens/s\n",
                                policy.to_string(), prompt.size(), static_cast<double>(prompt.size()) / read_seconds,
                                written, static_cast<double>(written) / write_seconds));
  evaluation::print(
      fmt::format("cache: {:.0f} KiB for {} tokens, ratio {:.2f} (fp16 keys and values would take {:.0f} KiB)\n",
                  static_cast<double>(stats.bytes()) / 1024, stats.seen, stats.ratio(),
                  static_cast<double>(stats.dense_bytes) / 1024));
}

}  // namespace

int main(int argc, char** argv) {
  return evaluation::run_command("generate", argc, argv, generate);
}
