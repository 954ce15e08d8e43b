// GGUF files: directory, configuration, tokenizer, and a model that runs a few tokens where all of them can be read.
#include <algorithm>
#include <string>
#include <vector>

#include "engine/config.hpp"
#include "engine/gguf.hpp"
#include "engine/model.hpp"
#include "engine/tokenizer.hpp"
#include "fuzz/fuzz_input.hpp"
#include "kvc/cache/kv_cache.hpp"
#include "kvc/error.hpp"
#include "kvc/policies/full.hpp"
#include "support/temporary_file.hpp"

namespace {

template <class Read>
bool can(Read read) {
  try {
    read();
    return true;
  } catch (const kvc::Error&) {
    return false;
  }
}

void tokenize(const engine::GGUFFile& file) {
  const engine::Tokenizer tokenizer(file);
  const std::vector<int> tokens = tokenizer.encode("he said: \xC3\xA9\xFF 12\n", engine::SpecialTokens::parse);
  tokenizer.decode(tokens);
}

void run_model(const std::string& path) {
  kvc::SerialExecutor executor;
  const engine::Model model = engine::Model::load(path, executor);
  const engine::Config& config = model.config();
  if (config.vocabulary > 100000 || config.context < 2) return;
  kvc::KVCache cache(model.cache_shape(), kvc::Full{});
  engine::Workspace workspace;
  const std::vector<int> tokens{0, static_cast<int>(config.vocabulary) - 1};
  const std::vector<kvc::Position> positions{0, 1};
  std::vector<float> logits(config.vocabulary);
  const auto attend = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
    cache.prefill(layer, rows, out);
  };
  model.forward(tokens, positions, attend, {logits.data(), 1, logits.size()}, workspace);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const TemporaryFile file{std::string(fuzz::text_of(data, size))};
  can([&] {
    const engine::GGUFFile parsed(file.path());
    can([&] { engine::read_config(parsed); });
    can([&] { tokenize(parsed); });
    if (can([&] { run_model(file.path()); })) fuzz::note_understood();
  });
  return 0;
}
