#include "evaluation/compare.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <vector>

#include "catch_shim.hpp"
#include "engine/gguf_writer.hpp"
#include "evaluation/json.hpp"
#include "support/child_process.hpp"
#include "support/temporary_file.hpp"

// The program as a user runs it, on a model of two layers with random weights and a context of 64 tokens.

using evaluation::Json;

namespace {

/// 2,000 characters, which the tiny model reads as 2,000 tokens.
std::string some_text() {
  std::string text;
  for (std::size_t i = 0; i < 2000; ++i) text.push_back(static_cast<char>('!' + (i * 7 + i / 13) % 90));
  return text;
}

struct Run {
  TemporaryFile model{tiny_model().bytes()}, text{some_text()}, out{""}, err{""};
  std::vector<std::string> words = {"compare", "--model",  model.path(), "--threads",  "2",    "--offset",
                                    "0",       "--stride", "100",        "--policies", "full", "--windows"};

  /// compare in a child process; `closed`: a standard stream that is closed before it starts.
  ChildEnd operator()(std::vector<std::string> more, int closed = -1) {
    std::vector<std::string> all = words;
    all.insert(all.end(), more.begin(), more.end());
    std::vector<const char*> argv;
    for (const std::string& word : all) argv.push_back(word.c_str());
    return run_in_child([&] {
      for (const auto& [path, descriptor] : {std::pair{out.path(), STDOUT_FILENO}, {err.path(), STDERR_FILENO}})
        ::dup2(::open(path.c_str(), O_WRONLY | O_TRUNC), descriptor);
      if (closed >= 0) ::close(closed);
      return evaluation::compare_main(static_cast<int>(argv.size()), argv.data());
    });
  }
};

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("a comparison whose files hold no windows, or no samples, is refused") {
  Run run;
  const TemporaryFile empty("[]");
  run.words.pop_back();
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"--windows-file", empty.path(), "--passkey", "0"},
        {"--windows", "0", "--samples", empty.path()}}) {
    const ChildEnd end = run(words);
    CHECK(end.signal == 0);
    CHECK(end.exit_code == 2);
    CHECK(contains(run.err.content(), "it has no "));
    CHECK(run.out.content().empty());
  }
}

TEST_CASE("a window's last token, which is only predicted, must be in the vocabulary too") {
  Run run;
  const TemporaryFile file(R"([{"ids": [1, 2, 3, 4, 5, 6, 7, 8, 9, 1000000000]}])");
  run.words.pop_back();
  const ChildEnd end = run({"--windows-file", file.path(), "--passkey", "0", "--prompt", "5", "--decode", "4"});
  CHECK(end.exit_code == 2);
  CHECK(contains(run.err.content(), "token id 1000000000 is outside"));
}

TEST_CASE("a run that fills the model's context gives its results, and times tokens where there is room") {
  Run run;
  const TemporaryFile json("");
  const auto results = [&](const std::string& decode) {
    const ChildEnd end = run({"1", "--text", run.text.path(), "--passkey", "0", "--prompt", "40", "--decode", decode,
                              "--json", json.path()});
    CHECK(end.exit_code == 0);
    return Json::parse(json.content()).at("lengths").at(0).at("results").at(0);
  };
  const Json roomy = results("8"), tight = results("20"), full = results("24");
  CHECK(roomy.at("token_ms").get<double>() > 0);
  CHECK(tight.at("token_ms").get<double>() > 0);
  CHECK(full.at("token_ms").is_null());
  CHECK(full.at("perplexity").get<double>() > 0);
  CHECK(full.at("attend_us").get<double>() > 0);
  CHECK(contains(run.out.content(), "perplexity"));
  const ChildEnd too_long = run({"1", "--text", run.text.path(), "--passkey", "0", "--prompt", "40", "--decode", "25"});
  CHECK(too_long.exit_code == 2);
}

TEST_CASE("several lengths and needles are run in one go, and results of a run can be shown again") {
  Run run;
  const TemporaryFile json(""), again("");
  const ChildEnd end = run(
      {"1", "--text", run.text.path(), "--passkey", "0", "--prompt", "20,40", "--decode", "8", "--json", json.path()});
  CHECK(end.exit_code == 0);
  const std::string table = run.out.content();
  CHECK(contains(table, "Prompts of 20 tokens."));
  CHECK(contains(table, "Prompts of 40 tokens."));
  CHECK(Json::parse(json.content())
            .at("protocol")
            .at("commands")
            .at(0)
            .get<std::string>()
            .starts_with("compare --model"));
  run.words = {"compare"};
  const TemporaryFile page(""), plot("");
  CHECK(run({"--from", json.path(), "--json", again.path(), "--html", page.path(), "--svg", plot.path()}).exit_code ==
        0);
  CHECK(page.content().starts_with("<!doctype html>"));
  CHECK(plot.content().starts_with("<svg "));
  CHECK(run.out.content() == table);
  CHECK(again.content() == json.content());
}

TEST_CASE("figures of texts for tuning say so") {
  Run run;
  const TemporaryFile json(""), page("");
  const ChildEnd end = run({"1", "--tune-texts", run.text.path() + "," + run.text.path(), "--passkey", "0", "--prompt",
                            "8", "--decode", "2", "--json", json.path()});
  CHECK(end.exit_code == 0);
  CHECK(contains(run.out.content(), "These are texts for settling parameters"));
  const Json protocol = Json::parse(json.content()).at("protocol");
  CHECK(protocol.at("tuning").get<bool>());
  CHECK(protocol.at("windows").get<int>() == 2);  // one of each text
  run.words = {"compare"};
  CHECK(run({"--from", json.path()}).exit_code == 0);
  CHECK(run({"--from", json.path(), "--html", page.path()}).exit_code == 2);
  CHECK(contains(run.err.content(), "no page is made"));
}

TEST_CASE("without standard error the program works, and refuses, as with it") {
  Run run;
  const TemporaryFile json("");
  const ChildEnd refused = run({"1", "--text", "no/such/file"}, STDERR_FILENO);
  CHECK(refused.signal == 0);
  CHECK(refused.exit_code == 2);
  const ChildEnd done =
      run({"2", "--text", run.text.path(), "--passkey", "0", "--prompt", "8", "--decode", "2", "--json", json.path()},
          STDERR_FILENO);
  CHECK(done.signal == 0);
  CHECK(done.exit_code == 0);
  CHECK(Json::parse(json.content()).at("lengths").at(0).at("results").size() ==
        1);  // and no message stands in the file
}

TEST_CASE("results reach their file even if standard output cannot be written") {
  Run run;
  const TemporaryFile json("");
  const ChildEnd end =
      run({"1", "--text", run.text.path(), "--passkey", "0", "--prompt", "8", "--decode", "2", "--json", json.path()},
          STDOUT_FILENO);
  CHECK(end.exit_code == 2);
  CHECK(contains(run.err.content(), "standard output cannot be written"));
  CHECK(Json::parse(json.content()).at("lengths").at(0).at("results").size() == 1);
}

#if defined(KVC_TEST_LIMITS_MEMORY)
TEST_CASE("a text without an end is refused before memory is gone") {
  Run run;
  const ChildEnd end = run_in_child([&] {
    leave_memory(std::size_t{1} << 30);
    return run({"1", "--text", "/dev/zero"}).exit_code;
  });
  CHECK(end.exit_code == 2);
  CHECK(contains(run.err.content(), "/dev/zero cannot be read: it has more than"));
}
#endif
