// JSON, and the files of windows and samples that are written in it. Byte 0 chooses the reader, the rest is the file.
#include <string>

#include "evaluation/json.hpp"
#include "evaluation/passkey.hpp"
#include "evaluation/windows.hpp"
#include "fuzz/fuzz_input.hpp"
#include "kvc/error.hpp"
#include "support/temporary_file.hpp"

namespace {

using evaluation::Json;

/// Asks every value for everything that it can be.
void read_all(const Json& json) {
  const auto tried = [](auto read) {
    try {
      read();
    } catch (const kvc::Error&) {
    }
  };
  tried([&] { evaluation::json_number(json.number()); });
  tried([&] {
    const std::string text = json.text();
    if (Json::parse(evaluation::quoted(text)).text().size() < text.size()) fuzz::fail("a text lost bytes");
  });
  tried([&] { json.integers(); });
  tried([&] { json.boolean(); });
  tried([&] {
    for (const Json& item : json.array()) read_all(item);
  });
  tried([&] {
    for (const char* key : {"windows", "samples", "ids"})
      if (json.has(key)) read_all(json[key]);
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Script script(data, size);
  const std::size_t reader = script.below(3);
  const std::string text(script.rest());
  try {
    if (reader == 0) {
      read_all(Json::parse(text));
    } else if (const TemporaryFile file(text); reader == 1) {
      const evaluation::WindowPlan plan{.prompt = 3, .decode = 2};
      for (const evaluation::Window& window : evaluation::read_windows(file.path(), plan))
        if (window.ids.size() != plan.tokens()) fuzz::fail("a window of another length than was asked for");
    } else {
      if (evaluation::read_samples(file.path()).empty()) fuzz::fail("no samples, and no complaint");
    }
    fuzz::note_understood();
  } catch (const kvc::Error&) {
  }
  return 0;
}
