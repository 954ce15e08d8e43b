#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "golden/runner.hpp"

namespace golden {
namespace {

using evaluation::Json;

std::string name_of(const Json& entry) {
  try {
    return entry.at("name").get<std::string>();
  } catch (const std::exception&) {
    return "(a case without a name)";
  }
}

Verdict failed(const std::string& name, const std::string& why) {
  return {Verdict::Kind::failed, "FAIL " + name + ": " + why, {}, {}};
}

Verdict run(const Case& golden, const Runner& runner) {
  Check check(golden);
  runner.run(golden, check);
  check.finish();
  Verdict verdict{Verdict::Kind::passed, "PASS " + golden.name(), check.details(), check.notes()};
  if (!check.failures().empty()) {
    verdict.kind = Verdict::Kind::failed;
    verdict.line = fmt::format("FAIL {}: {}", golden.name(), fmt::join(check.failures(), "; "));
  }
  return verdict;
}

}  // namespace

Verdict judge(const std::string& folder, const Json& entry, std::span<const Runner* const> runners) {
  const std::string name = name_of(entry);
  try {
    const Case golden(folder, entry);
    const std::string variant = golden.variant();
    const auto found =
        std::find_if(runners.begin(), runners.end(), [&](const Runner* runner) { return runner->accepts(golden); });
    if (found != runners.end()) {
      const std::string lacking = (*found)->lacks ? (*found)->lacks(golden) : "";
      if (lacking.empty()) return run(golden, **found);
      return {Verdict::Kind::skipped, "SKIP " + golden.name() + ": " + lacking, {}, {}};
    }
    return {Verdict::Kind::skipped,
            "SKIP " + golden.name() + ": nothing here runs policy " + golden.policy() +
                (variant.empty() ? "" : ", variant " + variant),
            {},
            {}};
  } catch (const std::exception& error) {
    return failed(name, error.what());
  }
}

}  // namespace golden
