#include <kvc/named/any_policy.hpp>
#include <kvc/policy/head_table.hpp>

#include "catch_shim.hpp"
#include "support/fake_head.hpp"
#include "support/temporary_file.hpp"

using kvc::HeadTable;

namespace {

const char* const Text =
    "kvc head table 1\n"
    "layers 2, kv_heads 3\n"
    "layer 0: 0 1 0\n"
    "layer 1: 1 0 1\n";

std::string complaint(const std::string& text) {
  return support::error_text([&] { HeadTable::parse(text, "heads.txt"); });
}

}  // namespace

TEST_CASE("a head table says which KV heads retrieve") {
  const HeadTable table(2, 3, {0, 1, 0, 1, 0, 1});
  CHECK(table.retrieves({0, 1}));
  CHECK(table.retrieves({1, 2}));
  CHECK_FALSE(table.retrieves({1, 1}));
  CHECK(table.count() == 3);
  CHECK(table.share() == 0.5);
  CHECK_FALSE(HeadTable{}.retrieves({7, 7}));
  CHECK(HeadTable{}.share() == 0);
}

TEST_CASE("a head table is written as it is read") {
  const HeadTable table(2, 3, {0, 1, 0, 1, 0, 1});
  CHECK(table.to_string() == Text);
  CHECK(HeadTable::parse(Text) == table);
  const TemporaryFile file("");
  kvc::save_head_table(table, file.path());
  CHECK(kvc::load_head_table(file.path()) == table);
}

TEST_CASE("comments, empty lines and foreign line ends do not matter to a head table") {
  CHECK(HeadTable::parse("# of some model\n\nkvc head table 1\r\nlayers 1, kv_heads 2  # small\r\n\r\nlayer 0: 1 0") ==
        HeadTable(1, 2, {1, 0}));
}

TEST_CASE("a damaged head table is refused with its place and what was expected") {
  CHECK(complaint("") == "heads.txt, line 1: the file ends, expected 'kvc head table 1'");
  CHECK(complaint("GGUF\x03\n") == "heads.txt, line 1: got 'GGUF?', expected 'kvc head table 1'");
  CHECK(complaint("kvc head table 2\n") == "heads.txt, line 1: got 'kvc head table 2', expected 'kvc head table 1'");
  const std::string sizes = "expected 'layers N, kv_heads N' with positive numbers";
  CHECK(complaint("kvc head table 1\nlayers 2\n") == "heads.txt, line 2: got 'layers 2', " + sizes);
  CHECK(complaint("kvc head table 1\nlayers 0, kv_heads 3\n") ==
        "heads.txt, line 2: got 'layers 0, kv_heads 3', " + sizes);
  CHECK(complaint("kvc head table 1\nlayers -1, kv_heads 3\n") ==
        "heads.txt, line 2: got 'layers -1, kv_heads 3', " + sizes);
  const std::string start = "kvc head table 1\n# a comment\nlayers 2, kv_heads 3\nlayer 0: 0 1 0\n";
  const std::string row = "expected 'layer 1:' and 3 times 0 or 1";
  CHECK(complaint(start) == "heads.txt, line 5: the file ends, " + row);
  CHECK(complaint(start + "layer 1: 1 0\n") == "heads.txt, line 5: got 'layer 1: 1 0', " + row);
  CHECK(complaint(start + "layer 1: 1 0 2\n") == "heads.txt, line 5: got 'layer 1: 1 0 2', " + row);
  CHECK(complaint(start + "layer 1: 1 0 1 1\n") == "heads.txt, line 5: got 'layer 1: 1 0 1 1', " + row);
  CHECK(complaint(start + "layer 2: 1 0 1\n") == "heads.txt, line 5: got 'layer 2: 1 0 1', " + row);
  CHECK(complaint(start + "layer 1: 1 0 1\nlayer 2: 0 0 0\n") ==
        "heads.txt, line 6: got 'layer 2: 0 0 0', expected nothing more after 2 layers");
}

TEST_CASE("a head table that promises more layers than any file holds is refused at its end") {
  CHECK(complaint("kvc head table 1\nlayers 18446744073709551615, kv_heads 18446744073709551615\n") ==
        "heads.txt, line 3: the file ends, expected 'layer 0:' and 18446744073709551615 times 0 or 1");
}

TEST_CASE("files that are not there, and places that cannot be written, are named") {
  CHECK(support::error_text([] { kvc::load_head_table("/no/such/heads.txt"); }) ==
        "/no/such/heads.txt: cannot be opened; a head table was expected");
  CHECK(support::error_text([] { kvc::save_head_table(HeadTable(1, 1, {1}), "/no/such/heads.txt"); }) ==
        "/no/such/heads.txt: the head table cannot be written there");
}

TEST_CASE("flags that are not layers times heads are refused") {
  CHECK(support::error_text([] {
          HeadTable(2, 3, {0, 1});
        }) == "HeadTable: got 2 flags, expected 2 layers of 3 KV heads");
}

TEST_CASE("a policy text names a head table by its file, or says that there is none") {
  const kvc::CacheShape shape{.layers = 2, .query_heads = 6, .kv_heads = 3};
  const TemporaryFile file(Text), damaged("layers 2\n");
  const auto validate = [&](const std::string& text) {
    return support::error_text([&] { kvc::check_stages(kvc::AnyPolicy::parse(text).stages(), shape); });
  };
  CHECK(validate("razor_attention:local=64,heads=" + file.path()) == "none");
  CHECK(validate("razor_attention:local=64,heads=none") == "none");
  CHECK(validate("razor_attention:local=64").find("no table of the model's retrieval heads") != std::string::npos);
  CHECK(validate("razor_attention:heads=" + damaged.path()) ==
        damaged.path() + ", line 1: got 'layers 2', expected 'kvc head table 1'");
}

TEST_CASE("a head table that a text does not name can be given to every stage that wants one") {
  auto policy = kvc::AnyPolicy::parse("razor_attention:local=64 | kivi:sinks=5");
  CHECK(policy.wants<HeadTable>());
  policy.set_default(HeadTable(2, 3, {0, 1, 0, 1, 0, 1}));
  CHECK_FALSE(policy.wants<HeadTable>());
  const kvc::CacheShape fits{.layers = 2, .query_heads = 6, .kv_heads = 3}, other{.layers = 3};
  CHECK(support::error_text([&] { kvc::check_stages(policy.stages(), fits); }) == "none");
  CHECK(support::error_text([&] { kvc::check_stages(policy.stages(), other); }) != "none");
  CHECK_FALSE(kvc::AnyPolicy::parse("razor_attention:heads=none").wants<HeadTable>());
  CHECK_FALSE(kvc::AnyPolicy::parse("snapkv").wants<HeadTable>());
}

TEST_CASE("a default budget goes to razor_attention unless its text says local or budget") {
  CHECK(kvc::AnyPolicy::parse("razor_attention").wants_budget());
  CHECK_FALSE(kvc::AnyPolicy::parse("razor_attention:local=64").wants_budget());
  CHECK_FALSE(kvc::AnyPolicy::parse("razor_attention:keep=0.5").wants_budget());
  CHECK_FALSE(kvc::AnyPolicy::parse("razor_attention:budget=256").wants_budget());
}
