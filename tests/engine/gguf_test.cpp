#include "engine/gguf.hpp"

#include <algorithm>
#include <cmath>

#include "catch_shim.hpp"
#include "engine/config.hpp"
#include "engine/dequantize.hpp"
#include "engine/gguf_writer.hpp"
#include "engine/model_file.hpp"
#include "kvc/error.hpp"
#include "evaluation/json.hpp"

using engine::GGUFFile;

namespace {

/// The code of the error that opening such a file gives, or "opened".
std::string outcome(const std::string& bytes) {
  const TemporaryFile file(bytes);
  try {
    const GGUFFile opened(file.path());
    return "opened";
  } catch (const kvc::Error& error) {
    return error.code() == kvc::ErrorCode::bad_file ? "bad_file" : "another error";
  }
}

std::string small_file(std::uint32_t version = 3, const std::string& magic = "GGUF") {
  GGUFWriter writer;
  writer.add_text("general.name", "small");
  writer.add_u32("answer", 42);
  writer.add_texts("words", {"one", "two"});
  writer.add_i32s("numbers", {1, -2, 3});
  writer.add_f32_tensor("first", {4, 2}, {1, 2, 3, 4, 5, 6, 7, 8});
  writer.add_f32_tensor("second", {3}, {9, 10, 11});
  return writer.bytes(version, magic);
}

/// `bytes` with the 8 bytes at `offset` replaced.
std::string with_u64(std::string bytes, std::size_t offset, std::uint64_t value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  return bytes;
}

constexpr std::size_t TensorCountOffset = 8, EntryCountOffset = 16, FirstKeyLengthOffset = 24;

}  // namespace

TEST_CASE("metadata and tensors come back as they were written") {
  for (const std::uint32_t version : {2u, 3u}) {
    const TemporaryFile file(small_file(version));
    const GGUFFile opened(file.path());
    CHECK(opened.text("general.name") == "small");
    CHECK(opened.size("answer") == 42);
    CHECK(opened.texts("words") == std::vector<std::string>{"one", "two"});
    CHECK(opened.numbers("numbers") == std::vector<double>{1, -2, 3});
    CHECK(opened.tensor("first").rows() == 2);
    std::vector<float> row(4);
    engine::dequantize_row(opened.tensor("first"), 1, row);
    CHECK(row == std::vector<float>{5, 6, 7, 8});
  }
}

TEST_CASE("a file that is cut off anywhere is refused") {
  const std::string whole = small_file();
  REQUIRE(outcome(whole) == "opened");
  for (std::size_t length = 0; length < whole.size(); ++length) {
    INFO("cut to " << length << " bytes");
    REQUIRE(outcome(whole.substr(0, length)) == "bad_file");
  }
}

TEST_CASE("a foreign magic, an unknown version and the other byte order are refused") {
  CHECK(outcome(small_file(3, "GGML")) == "bad_file");
  CHECK(outcome(small_file(1)) == "bad_file");
  CHECK(outcome(small_file(4)) == "bad_file");
  CHECK(outcome(small_file(0x03000000u)) == "bad_file");
}

TEST_CASE("counts and lengths that the file cannot hold are refused without asking for their memory") {
  const std::string whole = small_file();
  for (const std::uint64_t huge : {std::uint64_t{1} << 20, std::uint64_t{1} << 62, ~std::uint64_t{0}}) {
    CHECK(outcome(with_u64(whole, TensorCountOffset, huge)) == "bad_file");
    CHECK(outcome(with_u64(whole, EntryCountOffset, huge)) == "bad_file");
    CHECK(outcome(with_u64(whole, FirstKeyLengthOffset, huge)) == "bad_file");
  }
}

TEST_CASE("no single damaged byte makes the reader fail in another way") {
  const std::string whole = small_file();
  std::size_t refused = 0;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (const char damage : {'\x01', '\x40', '\xff'}) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ damage);
      const std::string result = outcome(damaged);
      INFO("byte " << i);
      REQUIRE((result == "opened" || result == "bad_file"));
      refused += result == "bad_file";
    }
  }
  CHECK(refused > 100);
}

TEST_CASE("a missing entry and one of another type are refused by name") {
  const TemporaryFile file(small_file());
  const GGUFFile opened(file.path());
  REQUIRE_THROWS_AS(opened.text("absent"), kvc::Error);
  REQUIRE_THROWS_AS(opened.text("answer"), kvc::Error);
  REQUIRE_THROWS_AS(opened.size("general.name"), kvc::Error);
  REQUIRE_THROWS_AS(opened.numbers("words"), kvc::Error);
  REQUIRE_THROWS_AS(opened.tensor("third"), kvc::Error);
  CHECK(opened.size_or("absent", 7) == 7);
}

TEST_CASE("what is no regular file is refused") {
  REQUIRE_THROWS_AS(GGUFFile("no/such/file.gguf"), kvc::Error);
  REQUIRE_THROWS_AS(GGUFFile("/"), kvc::Error);
}

TEST_CASE("a directory row index or an output of the wrong size is refused") {
  const TemporaryFile file(small_file());
  const GGUFFile opened(file.path());
  std::vector<float> row(4);
  REQUIRE_THROWS_AS(engine::dequantize_row(opened.tensor("first"), 2, row), kvc::Error);
  REQUIRE_THROWS_AS(engine::dequantize_row(opened.tensor("first"), 0, std::span(row).first(3)), kvc::Error);
}

TEST_CASE("every quantized format gives the values of the reference implementation") {
  const auto reference_file = evaluation::Json::load(KVC_TEST_DATA "/../engine/dequantize.json");
  REQUIRE(reference_file["blocks"].size() == 10);
  for (const auto& entry : reference_file["blocks"].array()) {
    const std::string& hex = entry["bytes"].text();
    std::vector<std::byte> bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2)
      bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    const auto expected = entry["values"].numbers<float>();
    std::vector<float> values(expected.size());
    const auto type = static_cast<engine::TensorType>(static_cast<std::uint32_t>(entry["number"].number()));
    REQUIRE(engine::block_layout(type).bytes == bytes.size());
    REQUIRE(engine::type_name(type) == entry["type"].text());
    engine::dequantize_blocks(type, bytes.data(), 1, values.data());
    float largest_value = 0, largest_difference = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      largest_value = std::max(largest_value, std::abs(expected[i]));
      largest_difference = std::max(largest_difference, std::abs(values[i] - expected[i]));
    }
    INFO(entry["type"].text());
    CHECK(largest_difference <= 3e-7f * largest_value);
  }
}

TEST_CASE("another architecture and impossible sizes are refused") {
  auto config_outcome = [](const std::string& key, std::uint32_t value) {
    GGUFWriter writer = tiny_model();
    writer.add_u32(key, value);  // a later entry of the same key replaces the earlier one
    const TemporaryFile file(writer.bytes());
    engine::read_config(GGUFFile(file.path()));
  };
  REQUIRE_THROWS_AS(config_outcome("llama.attention.head_count_kv", 3), kvc::Error);
  REQUIRE_THROWS_AS(config_outcome("llama.block_count", 0), kvc::Error);
  REQUIRE_THROWS_AS(config_outcome("llama.rope.dimension_count", 128), kvc::Error);
  REQUIRE_THROWS_AS(config_outcome("general.architecture", 1), kvc::Error);
  REQUIRE_NOTHROW(config_outcome("llama.context_length", 128));
}

TEST_CASE("the sizes of SmolLM2-135M are read", "[model]") {
  const engine::Config config = engine::read_config(model_file());
  CHECK(config.layers == 30);
  CHECK(config.query_heads == 9);
  CHECK(config.kv_heads == 3);
  CHECK(config.head_dim == 64);
  CHECK(config.hidden == 576);
  CHECK(config.ffn == 1536);
  CHECK(config.vocabulary == 49152);
  CHECK(config.context == 8192);
  CHECK(config.rope_base == 100000.0f);
  CHECK(config.tied);
}
