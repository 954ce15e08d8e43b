// Compares kvc as an operator of ggml graphs with ggml's own flash attention: bytes, time and error. See --help.
#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "evaluation/arguments.hpp"
#include "evaluation/command.hpp"
#include "evaluation/contestants.hpp"
#include "evaluation/statistics.hpp"
#include "ggml_layers.hpp"

namespace {

using evaluation::OptionText;
using Clock = std::chrono::steady_clock;

const std::vector<OptionText>& known_options() {
  static const std::vector<OptionText> all = {
      {"--policies", "LIST", "full; kivi:bits=4; snapkv:budget=256 | kivi:bits=4",
       "what is compared, with semicolons between"},
      {"--prompt", "N", "1024", "tokens of the prompt"},
      {"--decode", "N", "24", "tokens behind it, one by one"},
      {"--threads", "N", "1", "threads that ggml computes with"},
      {"--help", "", "", "show this"},
  };
  return all;
}

/// The layers of SmolLM2-135M.
const kvc::CacheShape Shape{.layers = 30, .query_heads = 9, .kv_heads = 3, .head_dim = 64};

struct Measured {
  double prompt_ms = 0, token_us = 0;  ///< of all layers; of one layer, the median
  double bytes = 0;
  std::vector<float> out;  ///< of the last layer, of all tokens behind the prompt
};

/// Runs the prompt and the tokens behind it. `bytes` tells what is held after so many tokens.
template <class Bytes>
Measured run(std::size_t prompt, std::size_t decode, int threads, ggml_example::AttentionOperator* attention,
             ggml_example::FlashAttention* flash, Bytes bytes) {
  ggml_example::Rows rows(7);
  Measured measured;
  std::vector<double> times;
  for (std::size_t at = 0; at < prompt + decode;) {
    const std::size_t tokens = at == 0 ? prompt : 1;
    const ggml_example::Graph graph(Shape, static_cast<std::int64_t>(tokens), static_cast<std::int64_t>(at), attention,
                                    flash, rows);
    if (attention) attention->expect(at == 0 ? ggml_example::Feed::prompt : ggml_example::Feed::generated);
    const auto begin = Clock::now();
    graph.compute(threads);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (attention) attention->check();
    if (at == 0) {
      measured.prompt_ms = seconds * 1e3;
    } else {
      times.push_back(seconds * 1e6 / static_cast<double>(Shape.layers));
      const auto* data = static_cast<const float*>(graph.out.back()->data);
      measured.out.insert(measured.out.end(), data, data + ggml_nelements(graph.out.back()));
    }
    at += tokens;
  }
  measured.token_us = evaluation::median(times);
  measured.bytes = static_cast<double>(bytes());
  return measured;
}

std::string row(const std::string& name, const Measured& measured, const Measured& exact) {
  double difference = 0, length = 0;
  for (std::size_t i = 0; i < exact.out.size(); ++i) {
    difference += std::pow(double{measured.out[i]} - double{exact.out[i]}, 2);
    length += std::pow(double{exact.out[i]}, 2);
  }
  return fmt::format("{:<36} {:>8.0f} KiB  prompt {:>8.1f} ms  token {:>7.1f} us a layer  error {:.2g}\n", name,
                     measured.bytes / 1024, measured.prompt_ms, measured.token_us, std::sqrt(difference / length));
}

void compare(std::span<const char* const> words) {
  const evaluation::Arguments arguments(words, known_options());
  if (arguments.has("--help"))
    return evaluation::print(
        "ggml_attention: kvc's cache and attention as nodes of ggml graphs, next to ggml's flash attention, on random "
        "rows of 30 layers of 9 query heads over 3 KV heads of 64. error: of the tokens behind the prompt in the last "
        "layer, relative to exact attention\n\n" +
        evaluation::option_table(known_options()));
  const std::size_t prompt = arguments.count("--prompt", 1, 1'000'000),
                    decode = arguments.count("--decode", 1, 1'000'000);
  const int threads = static_cast<int>(arguments.count("--threads", 1, 512));
  const auto contestants = evaluation::read_contestants(arguments.text("--policies"), {0.25});
  const auto cells = static_cast<std::int64_t>((prompt + decode + 255) / 256 * 256);
  const auto run_policy = [&](const kvc::AnyPolicy& policy, kvc::Scalar dense) {
    ggml_example::AttentionOperator attention;
    kvc::KVCache cache(Shape, policy, {.dense = {dense}, .executor = &attention.executor()});
    attention.serve(cache);
    return run(prompt, decode, threads, &attention, nullptr, [&] { return cache.stats().bytes(); });
  };
  const Measured exact = run_policy(evaluation::full_cache().policy, kvc::Scalar::f32);
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
    ggml_example::FlashAttention flash(Shape, type, cells);
    const Measured measured = run(prompt, decode, threads, nullptr, &flash,
                                  [&] { return flash.bytes(static_cast<std::int64_t>(prompt + decode)); });
    evaluation::print(row(fmt::format("ggml_flash_attn_ext {}", ggml_type_name(type)), measured, exact));
  }
  for (const auto& contestant : contestants)
    evaluation::print(
        row("kvc " + contestant.policy.to_string(), run_policy(contestant.policy, kvc::Scalar::f16), exact));
}

}  // namespace

int main(int argc, char** argv) {
  return evaluation::run_command("ggml_attention", argc, argv, compare);
}
