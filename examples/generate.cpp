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
#include "evaluation/files.hpp"
#include "evaluation/progress.hpp"
#include "evaluation/repeat_probe.hpp"
#include "evaluation/savings.hpp"
#include "evaluation/scoring.hpp"
#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"

namespace {

using evaluation::OptionText;

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model: a GGUF file of the llama architecture"},
      {"--prompt", "TEXT", "", "what the model continues or, with --chat, answers"},
      {"--context", "FILE", "", "a text that the model reads before the prompt, so that it can be asked about it"},
      {"--context-tokens", "N", "2000", "how much of that text it reads, from its beginning, in tokens"},
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
      "usage: generate --model FILE --prompt TEXT [OPTIONS]\n\n"
      "for example, a question about the beginning of a book:\n"
      "  generate --model model.gguf --chat --context book.txt --prompt \"Who is this about?\" "
      "--policy \"snapkv:budget=256 | kivi:bits=4\"\n\n" +
      evaluation::option_table(known_options()) +
      "\npolicies, with their parameters and defaults; several act one after the other if they are joined by |:\n";
  for (const std::string& name : kvc::AnyPolicy::names()) text += kvc::AnyPolicy::describe(name);
  return text;
}

void append(std::vector<int>& ids, std::span<const int> more) {
  ids.insert(ids.end(), more.begin(), more.end());
}

/// The user's words, behind the beginning of the text that they are about. They cannot act as control tokens.
std::vector<int> plain_ids(const engine::Tokenizer& tokenizer, const evaluation::Arguments& arguments,
                           const std::string& context) {
  std::vector<int> ids;
  if (arguments.has("--context")) {
    ids = tokenizer.encode(context, engine::SpecialTokens::as_text);
    ids.resize(std::min(ids.size(), arguments.count("--context-tokens", 1, 1'000'000)));
    append(ids, tokenizer.encode("\n\n"));
  }
  append(ids, tokenizer.encode(arguments.text("--prompt"), engine::SpecialTokens::as_text));
  return ids;
}

/// One user turn in ChatML, ready for the answer.
std::vector<int> chat_prompt(const engine::Tokenizer& tokenizer, std::span<const int> words) {
  if (!tokenizer.find("<|im_start|>"))
    kvc::fail(kvc::ErrorCode::incompatible, "--chat: this model's tokenizer has no <|im_start|>; leave --chat out");
  std::vector<int> ids = tokenizer.encode("<|im_start|>user\n");
  append(ids, words);
  append(ids, tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n"));
  return ids;
}

std::vector<int> prompt_ids(const engine::Tokenizer& tokenizer, const evaluation::Arguments& arguments,
                            const std::string& context) {
  if (arguments.text("--prompt").empty())
    kvc::fail(kvc::ErrorCode::invalid_argument, "--prompt TEXT is missing or empty");
  std::vector<int> ids = plain_ids(tokenizer, arguments, context);
  if (arguments.has("--chat")) return chat_prompt(tokenizer, ids);
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
  const std::string context =
      arguments.has("--context") ? evaluation::read_file(arguments.text("--context"), "--context") : "";

  engine::ThreadPool pool(arguments.count("--threads", 0, 1024));
  const engine::Model model = engine::Model::load(arguments.text("--model"), pool);
  const std::vector<int> prompt = prompt_ids(model.tokenizer(), arguments, context);
  kvc::KVCache cache(model.cache_shape(), policy, {.executor = &pool});

  std::vector<float> logits(model.config().vocabulary);
  const Stopwatch reading;
  engine::Workspace workspace;
  {
    evaluation::Progress progress;
    progress.begin(fmt::format("reading {} tokens", prompt.size()));
    read_prompt(model, cache, prompt, {logits.data(), 1, logits.size()}, workspace, policy.to_string());
  }
  const double read_seconds = reading.seconds();
  const Stopwatch writing;
  const std::size_t written = write_answer(model, cache, logits, prompt.size(), limit);
  const double write_seconds = writing.seconds();

  evaluation::print(fmt::format("\n\n{}: {} tokens read at {:.1f} tokens/s, {} written at {:.1f} tokens/s\n{}\n",
                                policy.to_string(), prompt.size(), static_cast<double>(prompt.size()) / read_seconds,
                                written, static_cast<double>(written) / write_seconds,
                                evaluation::savings(cache.stats(), model.cache_shape().heads())));
}

}  // namespace

int main(int argc, char** argv) {
  return evaluation::run_command("generate", argc, argv, generate);
}
