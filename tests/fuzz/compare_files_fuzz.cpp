// The files that `compare` reads: windows and samples as token ids, and results of earlier runs. Byte 0 chooses which, the
// rest is the file.
#include <string>

#include "evaluation/html_page.hpp"
#include "evaluation/passkey.hpp"
#include "evaluation/report.hpp"
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
    for (const evaluation::Question& question : sample.questions)
      if (sample.context.empty() || question.ids.empty() || question.answer.empty()) fuzz::fail("a sample with a gap");
}

void read_report(const std::string& path) {
  const evaluation::Report report = evaluation::read_reports({path});
  evaluation::table(report);
  if (evaluation::to_json(report).empty() || evaluation::html_page(report).empty())
    fuzz::fail("a report without a text");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Script script(data, size);
  const std::size_t kind = script.below(3);
  const TemporaryFile file{std::string(script.rest())};
  try {
    kind == 0 ? read_windows(file.path()) : kind == 1 ? read_samples(file.path()) : read_report(file.path());
    fuzz::note_understood();
  } catch (const kvc::Error&) {
  }
  return 0;
}
