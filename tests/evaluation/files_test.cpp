#include "evaluation/files.hpp"

#include "catch_shim.hpp"
#include "evaluation/command.hpp"
#include "evaluation/temporary_file.hpp"
#include "kvc/error.hpp"

using namespace evaluation;

TEST_CASE("a missing file is named, and what it is for") {
  try {
    read_file("/no/such/file", "--text");
    FAIL("a missing file was read");
  } catch (const kvc::Error& error) {
    CHECK(std::string(error.what()).find("--text: /no/such/file") != std::string::npos);
  }
}

TEST_CASE("a folder is not a text") {
  CHECK_THROWS_AS(read_file("/", "--text"), kvc::Error);
}

TEST_CASE("an output file that cannot be written is refused before the work") {
  CHECK_THROWS_AS(OutputFile("/no/such/folder/result.json"), kvc::Error);
  CHECK_THROWS_AS(OutputFile("/"), kvc::Error);
}

TEST_CASE("what an output file replaces stays until the new content is whole") {
  const TemporaryFile old("old");
  {
    OutputFile unfinished(old.path());
    CHECK(old.content() == "old");
  }
  CHECK(old.content() == "old");
  CHECK_FALSE(std::filesystem::exists(old.path() + ".part"));
  OutputFile(old.path()).write("new");
  CHECK(old.content() == "new");
}

TEST_CASE("an error becomes exit code 2, success 0") {
  const char* const words[] = {"program", "--word"};
  CHECK(run_command("program", 2, words, [](auto rest) { CHECK(std::string(rest[0]) == "--word"); }) == 0);
  CHECK(run_command("program", 2, words, [](auto) { kvc::fail(kvc::ErrorCode::bad_file, "a test's complaint"); }) == 2);
}
