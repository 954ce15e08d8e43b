// The files of token ids that `compare` reads: windows and samples. Byte 0 chooses which, the rest is the file.
#include <string>

#include "evaluation/passkey.hpp"
#include "evaluation/windows.hpp"
#include "fuzz/fuzz_input.hpp"
#include "kvc/error.hpp"
#include "support/temporary_file.hpp"

namespace {

void read_windows(const std::string& path) {
  const evaluation::WindowPlan plan{.prompt = 3, .decode = 2};
  for (const evaluation::Window& window : evaluation::read_windows(path, plan))
    if (window.ids.size() != plan.tokens()) fuzz::fail("a window of another length than was asked for");
}

void read_samples(const std::string& path) {
  const auto samples = evaluation::read_samples(path);
  if (samples.empty()) fuzz::fail("no samples, and no complaint");
  for (const evaluation::Sample& sample : samples)
    if (sample.context.empty() || sample.question.empty() || sample.answer.empty()) fuzz::fail("a sample with a gap");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Script script(data, size);
  const bool windows = script.below(2) == 0;
  const TemporaryFile file{std::string(script.rest())};
  try {
    windows ? read_windows(file.path()) : read_samples(file.path());
    fuzz::note_understood();
  } catch (const kvc::Error&) {
  }
  return 0;
}
