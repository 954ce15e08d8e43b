#include <algorithm>
#include <cmath>
#include <numeric>

#include "catch_shim.hpp"
#include "engine/dense_attention.hpp"
#include "engine/gguf_writer.hpp"
#include "engine/model.hpp"
#include "engine/thread_pool.hpp"
#include "kvc/error.hpp"

// What needs no trained weights: a model of two layers with random ones, written by the test.

using engine::Model;
using engine::Workspace;

namespace {

struct Tiny {
  engine::ThreadPool pool{2};
  TemporaryFile file{tiny_model().bytes()};
  Model model = Model::load(file.path(), pool);
  Workspace workspace;

  /// Logits after every token, with the tokens fed in pieces of `piece`.
  std::vector<float> run(const std::vector<int>& tokens, std::size_t piece) {
    DenseAttention attention(model.cache_shape(), pool);
    std::vector<float> memory(tokens.size() * 96);
    std::vector<kvc::Position> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), 0);
    for (std::size_t begin = 0; begin < tokens.size(); begin += piece) {
      const std::size_t count = std::min(piece, tokens.size() - begin);
      model.forward(std::span(tokens).subspan(begin, count), std::span(positions).subspan(begin, count), attention,
                    {memory.data() + begin * 96, count, 96}, workspace);
    }
    return memory;
  }

  void forward(std::vector<int> tokens, std::vector<kvc::Position> positions, std::size_t logit_rows) {
    std::vector<float> memory(logit_rows * 96);
    DenseAttention attention(model.cache_shape(), pool);
    model.forward(tokens, positions, attention, {memory.data(), logit_rows, 96}, workspace);
  }
};

/// 3, 10, 17, ... inside the vocabulary.
std::vector<int> some_tokens(std::size_t count) {
  std::vector<int> tokens(count);
  for (std::size_t i = 0; i < count; ++i) tokens[i] = static_cast<int>((3 + 7 * i) % 96);
  return tokens;
}

}  // namespace

TEST_CASE("one pass over a prompt and token by token give the same logits") {
  Tiny tiny;
  const auto tokens = some_tokens(40);
  const auto whole = tiny.run(tokens, 40);
  REQUIRE(std::all_of(whole.begin(), whole.end(), [](float logit) { return std::isfinite(logit); }));
  for (const std::size_t piece : {1u, 7u, 20u}) {
    const auto pieces = tiny.run(tokens, piece);
    float largest = 0;
    for (std::size_t i = 0; i < whole.size(); ++i) largest = std::max(largest, std::abs(whole[i] - pieces[i]));
    INFO("pieces of " << piece);
    CHECK(largest < 1e-4f);
  }
}

TEST_CASE("asking for the last row gives the last row") {
  Tiny tiny;
  const auto tokens = some_tokens(5);
  const auto all = tiny.run(tokens, 5);
  std::vector<float> last(96);
  std::vector<kvc::Position> positions = {0, 1, 2, 3, 4};
  DenseAttention attention(tiny.model.cache_shape(), tiny.pool);
  tiny.model.forward(tokens, positions, attention, {last.data(), 1, 96}, tiny.workspace);
  for (std::size_t i = 0; i < 96; ++i) CHECK(std::abs(last[i] - all[4 * 96 + i]) < 1e-5f);
}

TEST_CASE("the hidden rows through head() are the logits") {
  Tiny tiny;
  const auto tokens = some_tokens(6);
  const auto all = tiny.run(tokens, 6);
  std::vector<float> again(2 * 96);
  tiny.model.head(tiny.workspace.hidden().subrows(3, 2), {again.data(), 2, 96});
  for (std::size_t i = 0; i < again.size(); ++i) CHECK(std::abs(again[i] - all[3 * 96 + i]) < 1e-5f);
}

TEST_CASE("the attention gets every layer's rows once, in order, with their positions") {
  Tiny tiny;
  const auto tokens = some_tokens(3);
  const std::vector<kvc::Position> positions = {4, 5, 9};
  std::vector<std::size_t> layers;
  auto record = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
    layers.push_back(layer);
    CHECK((rows.q.count == 3 && rows.q.dim == 32 && rows.k.dim == 16 && rows.v.dim == 16));
    CHECK((out.count == 3 && out.dim == 32));
    CHECK(std::vector<kvc::Position>(rows.positions.begin(), rows.positions.end()) == positions);
    for (std::size_t row = 0; row < out.count; ++row) std::fill(out[row].begin(), out[row].end(), 0.0f);
  };
  tiny.model.forward(tokens, positions, record, {}, tiny.workspace);
  CHECK(layers == std::vector<std::size_t>{0, 1});
}

TEST_CASE("keys of a later position are those of position 0, rotated by the table of cache_shape()") {
  Tiny tiny;
  const kvc::CacheShape shape = tiny.model.cache_shape();
  REQUIRE(shape.rotary.interleaved);
  REQUIRE(shape.rotary.inv_freq.size() == 4);
  auto first_key = [&](kvc::Position position) {
    std::vector<float> key;
    auto record = [&](std::size_t layer, const kvc::Tokens& rows, kvc::Rows<float> out) {
      if (layer == 0) key.assign(rows.k[0].begin(), rows.k[0].end());
      std::fill(out[0].begin(), out[0].end(), 0.0f);
    };
    const int token = 50;
    tiny.model.forward({&token, 1}, {&position, 1}, record, {}, tiny.workspace);
    return key;
  };
  const auto at_zero = first_key(0), later = first_key(37);
  for (std::size_t i = 0; i < 16; i += 2) {
    const double angle = 37.0 * double{shape.rotary.inv_freq[i / 2 % 4]};
    CHECK(std::abs(at_zero[i] * std::cos(angle) - at_zero[i + 1] * std::sin(angle) - double{later[i]}) < 1e-5);
    CHECK(std::abs(at_zero[i] * std::sin(angle) + at_zero[i + 1] * std::cos(angle) - double{later[i + 1]}) < 1e-5);
  }
}

TEST_CASE("tokens outside the vocabulary, positions outside the context and wrong row counts are refused") {
  Tiny tiny;
  REQUIRE_NOTHROW(tiny.forward({5}, {63}, 1));
  REQUIRE_THROWS_AS(tiny.forward({96}, {0}, 1), kvc::Error);
  REQUIRE_THROWS_AS(tiny.forward({-1}, {0}, 1), kvc::Error);
  REQUIRE_THROWS_AS(tiny.forward({5}, {64}, 1), kvc::Error);
  REQUIRE_THROWS_AS(tiny.forward({5}, {-1}, 1), kvc::Error);
  REQUIRE_THROWS_AS(tiny.forward({5, 6}, {0}, 1), kvc::Error);
  REQUIRE_THROWS_AS(tiny.forward({5, 6, 7}, {0, 1, 2}, 2), kvc::Error);
}

TEST_CASE("a model file without its tensors, or with tensors of another shape, is refused") {
  engine::ThreadPool pool(1);
  const TemporaryFile no_tensors(tiny_model_metadata().bytes());
  REQUIRE_THROWS_AS(Model::load(no_tensors.path(), pool), kvc::Error);
  GGUFWriter wider = tiny_model();
  wider.add_u32("llama.feed_forward_length", 96);
  const TemporaryFile wrong_shape(wider.bytes());
  REQUIRE_THROWS_AS(Model::load(wrong_shape.path(), pool), kvc::Error);
  GGUFWriter foreign = tiny_model();
  foreign.add_text("tokenizer.ggml.pre", "unheard-of");
  const TemporaryFile unknown_tokenizer(foreign.bytes());
  REQUIRE_THROWS_AS(Model::load(unknown_tokenizer.path(), pool), kvc::Error);
}

TEST_CASE("weights that are no finite numbers are refused, whichever tensor has them") {
  engine::ThreadPool pool(1);
  for (const std::string name : {"token_embd.weight", "output_norm.weight", "blk.1.attn_norm.weight",
                                 "blk.0.attn_v.weight", "blk.1.ffn_down.weight"}) {
    const TemporaryFile file(tiny_model([&](const std::string& tensor, std::vector<float>& values) {
                               if (tensor == name) values[values.size() / 2] = std::nanf("");
                             }).bytes());
    INFO(name);
    try {
      Model::load(file.path(), pool);
      FAIL("a NaN was accepted");
    } catch (const kvc::Error& error) {
      CHECK(error.code() == kvc::ErrorCode::bad_file);
      CHECK(std::string(error.what()).find(name) != std::string::npos);
    }
  }
}

TEST_CASE("finite weights that make logits overflow are an error, not a NaN") {
  engine::ThreadPool pool(1);
  const TemporaryFile file(tiny_model([](const std::string& tensor, std::vector<float>& values) {
                             if (tensor == "output_norm.weight") values.assign(values.size(), 3e38f);
                           }).bytes());
  const Model model = Model::load(file.path(), pool);
  DenseAttention attention(model.cache_shape(), pool);
  Workspace workspace;
  const int token = 5;
  const kvc::Position position = 0;
  std::vector<float> logits(96);
  CHECK_THROWS_AS(model.forward({&token, 1}, {&position, 1}, attention, {logits.data(), 1, 96}, workspace), kvc::Error);
}

TEST_CASE("a model that is loaded does not need its file any more") {
  Tiny tiny;
  const auto tokens = some_tokens(5);
  const auto before = tiny.run(tokens, 5);
  std::filesystem::resize_file(tiny.file.path(), 0);
  CHECK(tiny.run(tokens, 5) == before);
}

TEST_CASE("the tokenizer of a file merges what its merges say") {
  Tiny tiny;
  const auto ids = tiny.model.tokenizer().encode("he he");
  REQUIRE(ids.size() == 3);
  CHECK(ids[0] == 95);
  CHECK(ids[1] == 0);
  CHECK(tiny.model.tokenizer().decode(ids) == "he he");
}
