#include "savings.hpp"

#include <fmt/format.h>

namespace evaluation {

std::string savings(const kvc::Stats& stats, std::size_t heads) {
  const auto kib = [](std::size_t bytes) { return static_cast<double>(bytes) / 1024; };
  const double kept = static_cast<double>(stats.slots) / static_cast<double>(heads);
  const std::string sizes = fmt::format(
      "The cache holds {} tokens in {:.0f} KiB; their keys and values would take {:.0f} "
      "KiB in fp16",
      stats.seen, kib(stats.bytes()), kib(stats.dense_bytes));
  const std::string tokens = kept + 0.5 < static_cast<double>(stats.seen)
                                 ? fmt::format("A head keeps {:.0f} of the tokens.", kept)
                                 : std::string("Every head keeps all tokens.");
  if (stats.ratio() < 1)
    return fmt::format(
        "{}. Nothing is saved: for so few tokens, what stays dense and what blocks have in reserve outweigh "
        "it. {} A longer prompt shows more.",
        sizes, tokens);
  return fmt::format("{}: it is {:.1f} times smaller. {}", sizes, stats.ratio(), tokens);
}

}  // namespace evaluation
