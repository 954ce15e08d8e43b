// Lets any model that llama.cpp runs write, with its cache under a policy: see --help.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "evaluation/arguments.hpp"
#include "evaluation/command.hpp"
#include "evaluation/files.hpp"
#include "evaluation/savings.hpp"
#include "evaluation/scoring.hpp"
#include "session.hpp"

namespace {

using evaluation::OptionText;
using Clock = std::chrono::steady_clock;

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model: a GGUF file of any architecture that kvc::LlamaCache serves"},
      {"--prompt", "TEXT", "", "what the model continues"},
      {"--context", "FILE", "", "a text that the model reads before the prompt"},
      {"--context-tokens", "N", "2000", "how much of that text it reads, from its beginning, in tokens"},
      {"--policy", "TEXT", "full", "how the cache is compressed; \"snapkv:budget=256 | kivi:bits=4\" for example"},
      {"--tokens", "N", "200", "how many tokens to write at most"},
      {"--threads", "N", "0", "how many threads compute; 0: one per processor"},
      {"--help", "", "", "show this"},
  };
  return all;
}

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::vector<llama_token> prompt_of(const llama_programs::Model& model, const evaluation::Arguments& arguments) {
  std::vector<llama_token> tokens;
  if (arguments.has("--context")) {
    tokens = model.tokens_of(evaluation::read_file(arguments.text("--context"), "--context"), false);
    tokens.resize(std::min(tokens.size(), arguments.count("--context-tokens", 1, 1'000'000)));
  }
  const std::vector<llama_token> asked = model.tokens_of(arguments.text("--prompt"), true);
  tokens.insert(tokens.end(), asked.begin(), asked.end());
  if (tokens.empty()) kvc::fail(kvc::ErrorCode::invalid_argument, "--prompt TEXT is missing or empty");
  return tokens;
}

/// Writes up to `limit` tokens, always the likeliest; returns how many.
std::size_t write(const llama_programs::Model& model, llama_programs::Session& session, std::size_t limit) {
  for (std::size_t written = 0; written < limit; ++written) {
    const auto token = static_cast<llama_token>(evaluation::argmax(session.logits()));
    if (model.ends_text(token)) return written;
    evaluation::print(model.text_of(token));
    session.feed({&token, 1});
  }
  return limit;
}

void generate(std::span<const char* const> words) {
  const evaluation::Arguments arguments(words, known_options());
  if (arguments.has("--help"))
    return evaluation::print(
        "llama_generate: lets a model write, computed by llama.cpp, with its KV cache compressed by kvc\n\n"
        "usage: llama_generate --model FILE --prompt TEXT [OPTIONS]\n\n" +
        evaluation::option_table(known_options()) + "\nThe policies are those of generate --help.\n");
  if (!arguments.has("--model")) kvc::fail(kvc::ErrorCode::invalid_argument, "--model FILE is missing");
  const auto policy = kvc::AnyPolicy::parse(arguments.text("--policy"));
  const std::size_t limit = arguments.count("--tokens", 1, 1'000'000);
  std::size_t threads = arguments.count("--threads", 0, 1024);
  if (threads == 0) threads = std::max(1u, std::thread::hardware_concurrency());

  const llama_programs::Model model(arguments.text("--model"));
  const std::vector<llama_token> prompt = prompt_of(model, arguments);
  const llama_programs::Size size{.tokens = prompt.size() + limit, .threads = static_cast<int>(threads)};
  llama_programs::ServedSession session(model, size, policy, {});

  const auto reading = Clock::now();
  session.feed(prompt);
  const double read_seconds = seconds_since(reading);
  const auto writing = Clock::now();
  const std::size_t written = write(model, session, limit);
  const double write_seconds = seconds_since(writing);
  evaluation::print(fmt::format("\n\n{}: {} tokens read at {:.1f} tokens/s, {} written at {:.1f} tokens/s\n{}\n",
                                policy.to_string(), prompt.size(), static_cast<double>(prompt.size()) / read_seconds,
                                written, static_cast<double>(written) / write_seconds,
                                evaluation::savings(session.stats(), session.shape().heads())));
}

}  // namespace

int main(int argc, char** argv) {
  return evaluation::run_command("llama_generate", argc, argv, generate);
}
