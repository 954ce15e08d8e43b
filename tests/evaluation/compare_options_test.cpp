#include "evaluation/compare_options.hpp"

#include <algorithm>
#include <sstream>

#include "catch_shim.hpp"
#include "evaluation/arguments.hpp"
#include "kvc/error.hpp"

using namespace evaluation;

namespace {

CompareOptions read(std::vector<const char*> words) {
  return read_compare_options(words);
}

/// The complaint about these words, beside a model and a text.
std::string complaint(std::vector<const char*> words) {
  words.insert(words.end(), {"--model", "m.gguf", "--text", "t.txt"});
  try {
    read(words);
  } catch (const kvc::Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("without options the comparison is the one of the reference protocol") {
  const CompareOptions options = read({"--model", "m.gguf", "--text", "t.txt"});
  CHECK(options.windows.offset == 4096);
  CHECK(options.windows.stride == 16384);
  CHECK(options.prompts == std::vector<std::size_t>{1024});
  CHECK(options.windows.decode == 128);
  CHECK_FALSE(options.comparison.prompt_only);
  CHECK(options.arithmetic == engine::Arithmetic::f32);
}

TEST_CASE("--fast multiplies the model's weights as llama.cpp does") {
  CHECK(read({"--model=m.gguf", "--text=t.txt", "--fast"}).arithmetic == engine::Arithmetic::fast);
}

TEST_CASE("by default ten policies are compared, those with a budget at one keep fraction") {
  const CompareOptions options = read({"--model=m.gguf", "--text=t.txt"});
  std::vector<std::string> names;
  for (const Contestant& contestant : options.contestants) names.push_back(contestant.name);
  CHECK(names == std::vector<std::string>{"full", "full:bits=4", "streaming_llm", "h2o", "snapkv", "razor_attention",
                                          "kivi:bits=4", "kivi:bits=2", "snapkv | kivi:bits=4", "compact:keep=0.155"});
  CHECK(options.contestants[0].keep == 1);
  CHECK(options.contestants[2].keep == 0.25);
}

TEST_CASE("the word all stands for every policy, those with a budget once per keep fraction") {
  const CompareOptions options = read({"--model=m.gguf", "--text=t.txt", "--policies", "all", "--keep", "0.5, 0.25"});
  std::vector<std::string> names;
  for (const Contestant& contestant : options.contestants)
    names.push_back(contestant.name.substr(0, contestant.name.find(':')));
  for (const std::string& name : kvc::AnyPolicy::names()) {
    CAPTURE(name);
    const bool cannot = name == "external_scores" || name == "h2o_mask";  // one needs a scorer, one is for tests of H2O
    CHECK((std::ranges::count(names, name) != 0) == !cannot);
  }
  CHECK(std::ranges::count(names, "h2o") == 2);
}

TEST_CASE("several lengths of prompts, several needles and several texts can be asked for") {
  const CompareOptions options =
      read({"--model=m", "--text", "a.txt, b.txt", "--prompt", "1024,4096", "--needles", "5"});
  CHECK(options.prompts == std::vector<std::size_t>{1024, 4096});
  CHECK(options.texts == std::vector<std::string>{"a.txt", "b.txt"});
  CHECK(options.needles == 5);
  CHECK_FALSE(options.tuning);
}

TEST_CASE("texts for tuning stand apart from texts for reports") {
  const CompareOptions options = read({"--model=m", "--tune-texts", "a.txt,b.txt"});
  CHECK(options.tuning);
  CHECK(options.texts == std::vector<std::string>{"a.txt", "b.txt"});
  CHECK(contains(complaint({"--tune-texts", "a.txt"}), "--tune-texts and --text exclude each other"));
  CHECK_THROWS_AS(read({"--model=m", "--tune-texts", "a.txt", "--html", "page.html"}), kvc::Error);
  CHECK_THROWS_AS(read({"--model=m", "--tune-texts", "a.txt", "--windows-file", "w.json"}), kvc::Error);
}

TEST_CASE("results of earlier runs need no model, and exclude what a run needs") {
  CHECK(read({"--from", "a.json,b.json", "--html", "page.html"}).from == std::vector<std::string>{"a.json", "b.json"});
  CHECK_THROWS_AS(read({"--from", "a.json", "--policies", "h2o"}), kvc::Error);
}

TEST_CASE("a policy whose budget is given is compared once") {
  const CompareOptions options =
      read({"--model", "m", "--text", "t", "--policies", "snapkv:budget=100; h2o", "--keep", "0.5,0.25"});
  REQUIRE(options.contestants.size() == 3);
  CHECK(options.contestants[0].keep == 1);
  CHECK(options.contestants[1].policy.to_string() == "h2o:budget=0.5");
}

TEST_CASE("complaints about options say what is wrong and what would be right") {
  CHECK(contains(complaint({"--polices", "full"}), "did you mean '--policies'?"));
  CHECK(contains(complaint({"--keep", "1.5"}), "--keep takes fractions in (0, 1]"));
  CHECK(contains(complaint({"--keep", "0.5,"}), "--keep takes fractions in (0, 1]"));
  CHECK(contains(complaint({"--keep", "0.5,0.50"}), "given twice"));
  CHECK(contains(complaint({"--windows", "-1"}), "--windows takes a whole number from 0"));
  CHECK(contains(complaint({"--decode", "0"}), "--decode takes a whole number from 1"));
  CHECK(contains(complaint({"--prompt", "1024,"}), "--prompt takes whole numbers from 1"));
  CHECK(contains(complaint({"--prompt", "1024,1024"}), "--prompt: 1024 is given twice"));
  CHECK(contains(complaint({"--needles", "9"}), "--needles takes a whole number from 1 to 8"));
  CHECK(contains(complaint({"--samples", "s.json", "--prompt", "8,9"}), "give one length"));
  CHECK(contains(complaint({"--dense", "f64"}), "f32 | f16 | bf16"));
  CHECK(contains(complaint({"--prompt-only=yes"}), "--prompt-only takes no value"));
  CHECK(contains(complaint({"--threads", "1", "--threads", "2"}), "--threads is given twice"));
  CHECK(contains(complaint({"full"}), "'full' is no option"));
  CHECK(contains(complaint({"--windows", "0", "--passkey", "0"}), "nothing to compare"));
  CHECK(contains(complaint({"--passkey", "1", "--samples", "s.json"}), "exclude each other"));
}

TEST_CASE("an unknown policy word is pointed at") {
  const std::string text = complaint({"--policies", "full; snapvk"});
  CHECK(contains(text, "did you mean 'snapkv'?"));
  CHECK(contains(text, "^^^^^^"));
}

TEST_CASE("a missing value, model or text is named") {
  CHECK_THROWS_AS(read({"--model"}), kvc::Error);
  CHECK_THROWS_AS(read({"--text", "t"}), kvc::Error);
  CHECK_THROWS_AS(read({"--model", "m"}), kvc::Error);
  CHECK_FALSE(read({"--model", "m", "--windows-file", "w.json", "--samples", "s.json"}).needs_text());
}

TEST_CASE("the options of a help are wrapped for a terminal, under their headings") {
  const OptionText options[] = {
      {"--long", "VALUE", "one two three", "a help of many words " + std::string(70, 'x') + " that end", "heading"},
      {"--short", "", "", "help"},
  };
  CHECK(option_table(options) ==
        "heading:\n"
        "  --long VALUE            a help of many words\n" +
            std::string(26, ' ') + std::string(70, 'x') + "\n" + std::string(26, ' ') +
            "that end (default: one two three)\n"
            "  --short                 help\n");
  std::istringstream lines(compare_help());
  for (std::string line; std::getline(lines, line) && !line.starts_with("policies, with");) CHECK(line.size() <= 120);
}

TEST_CASE("help needs nothing else and names every option and policy") {
  CHECK(read({"--help"}).help);
  const std::string help = compare_help();
  for (const char* word : {"--model", "--policies", "--keep", "--json", "snapkv", "kivi", "window="}) {
    CAPTURE(word);
    CHECK(contains(help, word));
  }
}
