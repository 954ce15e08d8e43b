#include "engine/gguf.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "catch_shim.hpp"
#include "engine/config.hpp"
#include "engine/dequantize.hpp"
#include "engine/gguf_writer.hpp"
#include "engine/model_file.hpp"
#include "evaluation/json.hpp"
#include "kvc/error.hpp"
#include "support/child_process.hpp"

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
  REQUIRE_THROWS_AS(GGUFFile("/dev/zero"), kvc::Error);
}

TEST_CASE("a named pipe without a writer is refused at once") {
  const TemporaryFile place("");
  const std::string pipe = place.path() + ".pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  const ChildEnd end = run_in_child([&] {
    try {
      const GGUFFile opened(pipe);
    } catch (const kvc::Error& error) {
      return error.code() == kvc::ErrorCode::bad_file ? 0 : 1;
    }
    return 2;
  });
  std::filesystem::remove(pipe);
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
}

TEST_CASE("tensors that share bytes of the file are refused") {
  GGUFWriter writer;
  writer.add_text("general.name", "overlapping");
  writer.add_f32_tensor("first", {16}, std::vector<float>(16));
  writer.add_f32_tensor("second", {16}, std::vector<float>(16));
  REQUIRE(outcome(writer.bytes()) == "opened");
  GGUFWriter same = writer, partly = writer;
  same.list_f32_tensor("third", {16}, 64);
  CHECK(outcome(same.bytes()) == "bad_file");
  partly.list_f32_tensor("third", {16}, 32);
  CHECK(outcome(partly.bytes()) == "bad_file");
}

TEST_CASE("a directory row index or an output of the wrong size is refused") {
  const TemporaryFile file(small_file());
  const GGUFFile opened(file.path());
  std::vector<float> row(4);
  REQUIRE_THROWS_AS(engine::dequantize_row(opened.tensor("first"), 2, row), kvc::Error);
  REQUIRE_THROWS_AS(engine::dequantize_row(opened.tensor("first"), 0, std::span(row).first(3)), kvc::Error);
}

TEST_CASE("every quantized format gives the values of the reference implementation") {
  const auto reference_file =
      evaluation::Json::parse(evaluation::read_file(KVC_TEST_DATA "/../engine/dequantize.json", "the reference"));
  REQUIRE(reference_file.at("blocks").size() == 10);
  for (const auto& entry : reference_file.at("blocks")) {
    const std::string& hex = entry.at("bytes").get<std::string>();
    std::vector<std::byte> bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2)
      bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
    const auto expected = entry.at("values").get<std::vector<float>>();
    std::vector<float> values(expected.size());
    const auto type = static_cast<engine::TensorType>(static_cast<std::uint32_t>(entry.at("number").get<double>()));
    REQUIRE(engine::block_layout(type).bytes == bytes.size());
    REQUIRE(engine::type_name(type) == entry.at("type").get<std::string>());
    engine::dequantize_blocks(type, bytes.data(), 1, values.data());
    float largest_value = 0, largest_difference = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      largest_value = std::max(largest_value, std::abs(expected[i]));
      largest_difference = std::max(largest_difference, std::abs(values[i] - expected[i]));
    }
    INFO(entry.at("type").get<std::string>());
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

#if defined(KVC_TEST_LIMITS_MEMORY)
TEST_CASE("sizes near 2^32 in a small file are refused without asking for their memory") {
  for (const auto& [key, value] : {std::pair{"llama.rope.dimension_count", 4294967294u},
                                   {"llama.attention.key_length", 4294967288u},
                                   {"llama.feed_forward_length", 4294967264u},
                                   {"llama.embedding_length", 4294967264u},
                                   {"llama.context_length", 4294967295u},
                                   {"llama.attention.head_count", 4294967294u},
                                   {"llama.block_count", 4294967295u}}) {
    INFO(key);
    GGUFWriter writer = tiny_model();
    writer.add_u32(key, value);
    const TemporaryFile file(writer.bytes());
    const ChildEnd end = run_in_child([&, opened = GGUFFile(file.path())] {
      leave_memory(std::size_t{64} << 20);
      try {
        engine::read_config(opened);
      } catch (const kvc::Error& error) {
        return error.code() == kvc::ErrorCode::bad_file ? 0 : 1;
      }
      return 2;
    });
    CHECK(end.exit_code == 0);
  }
}
#endif

TEST_CASE("a model with more query heads per KV head than a cache takes is refused before its weights are read") {
  GGUFWriter writer = tiny_model_metadata();
  writer.add_u32("llama.attention.head_count", 65);
  writer.add_u32("llama.attention.head_count_kv", 1);
  writer.add_u32("llama.attention.key_length", 8);
  writer.add_f32_tensor("token_embd.weight", {32, 96}, std::vector<float>(32 * 96));
  writer.add_f32_tensor("blk.0.attn_q.weight", {32, 520}, std::vector<float>(32 * 520));
  writer.add_f32_tensor("blk.0.attn_k.weight", {32, 8}, std::vector<float>(32 * 8));
  writer.add_f32_tensor("blk.0.ffn_gate.weight", {32, 64}, std::vector<float>(32 * 64));
  const TemporaryFile file(writer.bytes());
  try {
    engine::read_config(GGUFFile(file.path()));
    FAIL("65 query heads per KV head were accepted");
  } catch (const kvc::Error& error) {
    CHECK(error.code() == kvc::ErrorCode::incompatible);
    CHECK(std::string(error.what()).find("64 query heads") != std::string::npos);
  }
}

TEST_CASE("rotary factors that are not positive numbers are refused") {
  for (const float factor : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    GGUFWriter writer = tiny_model();
    writer.add_f32_tensor("rope_freqs.weight", {4}, {1, 1, factor, 1});
    const TemporaryFile file(writer.bytes());
    CHECK_THROWS_AS(engine::read_config(GGUFFile(file.path())), kvc::Error);
  }
}

TEST_CASE("an element that is no finite number is found in every format") {
  // Every block of zeros is finite. These 16 or 32 bits at this offset of a block make an element infinite or NaN.
  struct Case {
    engine::TensorType type;
    std::size_t offset;
    std::uint32_t bits;
  };
  using engine::TensorType;
  for (const auto& [type, offset, bits] :
       {Case{TensorType::f32, 0, 0x7FC00000u}, Case{TensorType::f32, 0, 0xFF800000u}, Case{TensorType::f16, 0, 0x7C00u},
        Case{TensorType::bf16, 0, 0x7F80u}, Case{TensorType::q4_0, 0, 0x7E00u}, Case{TensorType::q4_1, 0, 0x7C00u},
        Case{TensorType::q4_1, 2, 0xFC00u}, Case{TensorType::q5_0, 0, 0x7C00u}, Case{TensorType::q5_1, 2, 0x7C01u},
        Case{TensorType::q8_0, 0, 0x7C00u}, Case{TensorType::q2_k, 80, 0x7C00u}, Case{TensorType::q2_k, 82, 0x7C00u},
        Case{TensorType::q3_k, 108, 0x7C00u}, Case{TensorType::q4_k, 0, 0x7C00u}, Case{TensorType::q4_k, 2, 0x7C00u},
        Case{TensorType::q5_k, 2, 0x7C00u}, Case{TensorType::q6_k, 208, 0x7C00u}}) {
    const engine::BlockLayout layout = engine::block_layout(type);
    std::vector<std::byte> bytes(3 * layout.bytes);
    engine::Tensor tensor{"t", type, {3 * layout.elements}, bytes};
    INFO(engine::type_name(type) << " at byte " << offset);
    REQUIRE(engine::all_finite(tensor));
    std::memcpy(bytes.data() + 2 * layout.bytes + offset, &bits, type == TensorType::f32 ? 4 : 2);
    CHECK_FALSE(engine::all_finite(tensor));
  }
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
