// Saves what a cache has read of a text, and goes on from the file: see --help.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "engine/mapped_file.hpp"
#include "engine/model.hpp"
#include "engine/sequences.hpp"
#include "engine/thread_pool.hpp"
#include "evaluation/arguments.hpp"
#include "evaluation/command.hpp"
#include "evaluation/files.hpp"
#include "evaluation/repeat_probe.hpp"
#include "kvc/kvc.hpp"
#include "kvc/named/any_policy.hpp"
#include "kvc/session.hpp"

namespace {

using evaluation::OptionText;

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--model", "FILE", "", "the language model: a GGUF file of the llama architecture"},
      {"--context", "FILE", "", "the text that the model reads"},
      {"--context-tokens", "N", "2000", "how much of that text it reads, from its beginning, in tokens"},
      {"--policy", "TEXT", "full", "how the cache is compressed"},
      {"--session", "FILE", "", "the file that the session is written to, and read from"},
      {"--threads", "N", "0", "how many threads compute; 0: one per processor"},
      {"--help", "", "", "show this"},
  };
  return all;
}

/// Seconds of a call.
template <class Call>
double seconds_of(Call call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

File open(const std::string& path, const char* mode) {
  File file(std::fopen(path.c_str(), mode), std::fclose);
  if (!file) kvc::fail(kvc::ErrorCode::bad_file, {"--session: cannot open ", path});
  return file;
}

/// What is read behind the text: one token, always the same.
std::vector<float> next_logits(const engine::Model& model, kvc::CacheCore& cache, std::size_t position, int token) {
  engine::Workspace workspace;
  std::vector<float> logits(model.config().vocabulary);
  kvc::CacheCore* const batch[] = {&cache};
  const auto place = static_cast<kvc::Position>(position);
  engine::step(model, batch, {&token, 1}, {&place, 1}, {logits.data(), 1, logits.size()}, workspace);
  return logits;
}

void read_text(const engine::Model& model, kvc::CacheCore& cache, std::span<const int> tokens,
               const std::string& policy) {
  engine::Workspace workspace;
  const bool probed = evaluation::wants_probe(cache.stages());
  if (probed) evaluation::check_repetition(model, tokens, policy);
  engine::prefill(model, cache, tokens, {}, workspace, {.last_chunk = !probed});
  if (!probed) return;
  kvc::CacheCore* const caches[] = {&cache};
  evaluation::repeat_prompt(model, caches, tokens, workspace);
  cache.compress();
}

void run(std::span<const char* const> words) {
  const evaluation::Arguments arguments(words, known_options());
  if (arguments.has("--help"))
    return evaluation::print(
        "session: lets a model read a text, saves its cache, loads it into another one, and goes on from there\n\n"
        "usage: session --model FILE --context FILE --session FILE [OPTIONS]\n\n" +
        evaluation::option_table(known_options()));
  for (const char* needed : {"--model", "--context", "--session"})
    if (!arguments.has(needed)) kvc::fail(kvc::ErrorCode::invalid_argument, {needed, " FILE is missing"});
  const auto policy = kvc::AnyPolicy::parse(arguments.text("--policy"));
  engine::ThreadPool pool(arguments.count("--threads", 0, 1024));
  const engine::Model model = engine::Model::load(arguments.text("--model"), pool);
  std::vector<int> tokens = model.tokenizer().encode(evaluation::read_file(arguments.text("--context"), "--context"),
                                                     engine::SpecialTokens::as_text);
  tokens.resize(std::min(tokens.size(), arguments.count("--context-tokens", 2, 1'000'000)));
  const int last = tokens.back();
  tokens.pop_back();

  const kvc::CacheOptions options{.executor = &pool};
  kvc::KVCache cache(model.cache_shape(), policy, options), loaded(model.cache_shape(), policy, options);
  const double reading = seconds_of([&] { read_text(model, cache, tokens, policy.to_string()); });
  std::uint64_t bytes = 0;
  const double saving = seconds_of([&] {
    const File file = open(arguments.text("--session"), "wb");
    bytes = kvc::save(cache, [&](std::span<const std::byte> more) {
      return std::fwrite(more.data(), 1, more.size(), file.get()) == more.size();
    });
    if (std::fflush(file.get()) != 0) kvc::fail(kvc::ErrorCode::bad_file, "--session: the file could not be written");
  });
  const double loading = seconds_of([&] {
    const File file = open(arguments.text("--session"), "rb");
    kvc::load(loaded, [&](std::span<std::byte> room) { return std::fread(room.data(), 1, room.size(), file.get()); });
  });
  kvc::KVCache mapped(model.cache_shape(), policy, options);
  const double mapping = seconds_of([&] {
    auto file = std::make_shared<engine::MappedFile>(arguments.text("--session"));
    const std::span<const std::byte> lying = file->bytes();
    kvc::load(mapped, kvc::SessionInMemory{.bytes = lying, .owner = std::move(file)});
  });
  std::vector<float> logits;
  const double first = seconds_of([&] { logits = next_logits(model, loaded, tokens.size(), last); });
  const bool same = logits == next_logits(model, cache, tokens.size(), last) &&
                    logits == next_logits(model, mapped, tokens.size(), last);
  evaluation::print(fmt::format(
      "{}: {} tokens read in {:.2f} s; the session has {} bytes ({:.1f} times smaller than fp16), saved in {:.1f} ms, "
      "loaded in {:.1f} ms, mapped in {:.1f} ms; the next token took {:.1f} ms, its logits are {}\n",
      policy.to_string(), tokens.size(), reading, bytes,
      static_cast<double>(cache.stats().dense_bytes) / static_cast<double>(bytes), saving * 1e3, loading * 1e3,
      mapping * 1e3, first * 1e3, same ? "the same to the last bit" : "DIFFERENT"));
  if (!same) kvc::fail(kvc::ErrorCode::bad_file, "the session is not the cache");
}

}  // namespace

int main(int argc, char** argv) {
  return evaluation::run_command("session", argc, argv, run);
}
