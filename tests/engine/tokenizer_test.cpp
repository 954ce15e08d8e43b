#include "engine/tokenizer.hpp"

#include "catch_shim.hpp"
#include "engine/model_file.hpp"
#include "evaluation/json.hpp"
#include "kvc/error.hpp"
#include "support/sha256.hpp"

using engine::SpecialTokens;
using engine::Tokenizer;
using evaluation::Json;

namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer instance(model_file());
  return instance;
}

std::string little_endian_sha256(const std::vector<int>& ids) {
  std::vector<std::uint8_t> bytes;
  for (const int id : ids)
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<std::uint8_t>(id >> shift));
  return support::sha256(bytes);
}

std::vector<std::string> split(engine::PreTokenizer kind, std::string_view text) {
  std::vector<std::string_view> pieces;
  engine::split_text(kind, text, pieces);
  return {pieces.begin(), pieces.end()};
}

using Pieces = std::vector<std::string>;

}  // namespace

TEST_CASE("every string of tokenizer.json gives the reference ids", "[model]") {
  const Json reference_file = Json::parse(read_text(reference("tokenizer.json")));
  REQUIRE(reference_file.at("strings").size() == 120);
  for (const Json& entry : reference_file.at("strings")) {
    INFO(entry.at("text").get<std::string>());
    CHECK(tokenizer().encode(entry.at("text").get<std::string>()) == entry.at("ids").get<std::vector<int>>());
  }
}

TEST_CASE("with special tokens as text, every string gives the ids of llama.cpp", "[model]") {
  const Json reference_file = Json::parse(read_text(reference("tokenizer_llamacpp.json")));
  REQUIRE(reference_file.at("cases").size() == 64);
  for (const Json& entry : reference_file.at("cases")) {
    INFO(entry.at("text").get<std::string>());
    CHECK(tokenizer().encode(entry.at("text").get<std::string>(), SpecialTokens::as_text) ==
          entry.at("ids").get<std::vector<int>>());
  }
}

TEST_CASE("a whole book gives the reference count and hash of ids, and decodes to itself", "[model]") {
  const std::string text = read_text(KVC_TEST_DATA "/../../examples/data/emma.txt");
  const std::vector<int> ids = tokenizer().encode(text);
  const Json reference_file = Json::parse(read_text(reference("tokenizer.json")));
  for (const Json& entry : reference_file.at("whole_texts")) {
    if (entry.at("file").get<std::string>() != "emma.txt") continue;
    REQUIRE(text.size() == static_cast<std::size_t>(entry.at("bytes").get<double>()));
    CHECK(ids.size() == static_cast<std::size_t>(entry.at("n_tokens").get<double>()));
    CHECK(little_endian_sha256(ids) == entry.at("ids_sha256_int32le").get<std::string>());
  }
  CHECK(tokenizer().decode(ids) == text);
}

TEST_CASE("an id outside the vocabulary is refused", "[model]") {
  REQUIRE_THROWS_AS(tokenizer().decode(49152), kvc::Error);
  REQUIRE_THROWS_AS(tokenizer().decode(-1), kvc::Error);
}

TEST_CASE("control tokens are found by their text", "[model]") {
  CHECK(tokenizer().find("<|im_end|>") == 2);
  CHECK(tokenizer().eos() == 2);
  CHECK_FALSE(tokenizer().bos().has_value());
  CHECK_FALSE(tokenizer().find("<|no such token|>").has_value());
}

TEST_CASE("gpt2 splits words with their blank, numbers whole, and leaves a word its blank") {
  CHECK(split(engine::PreTokenizer::gpt2, "I'll pay  123 euros!?\n") ==
        Pieces{"I", "'ll", " pay", " ", " 123", " euros", "!?", "\n"});
  CHECK(split(engine::PreTokenizer::gpt2, "I'LL").size() == 3);
}

TEST_CASE("smollm isolates digits before anything else") {
  CHECK(split(engine::PreTokenizer::smollm, "a  3 b12") == Pieces{"a", "  ", "3", " b", "1", "2"});
}

TEST_CASE("llama-bpe takes up to three digits and keeps newlines with what precedes them") {
  CHECK(split(engine::PreTokenizer::llama_bpe, "I'LL pay 12345.\n\nOk \n x") ==
        Pieces{"I", "'LL", " pay", " ", "123", "45", ".\n\n", "Ok", " \n", " x"});
}

TEST_CASE("qwen2 takes digits one by one") {
  CHECK(split(engine::PreTokenizer::qwen2, "(x=12)") == Pieces{"(x", "=", "1", "2", ")"});
}

TEST_CASE("bytes that are no UTF-8 stay in the pieces") {
  const std::string text = "a\xff\xc3(\xe2\x82";
  std::string together;
  for (const auto& piece : split(engine::PreTokenizer::gpt2, text)) together += piece;
  CHECK(together == text);
}

TEST_CASE("an unknown pre-tokenizer is refused by name") {
  REQUIRE_THROWS_AS(engine::pre_tokenizer_named("tiktoken-9000"), kvc::Error);
  CHECK(engine::pre_tokenizer_named("smollm") == engine::PreTokenizer::smollm);
}
