#include "evaluation/files.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "catch_shim.hpp"
#include "engine/mapped_file.hpp"
#include "evaluation/command.hpp"
#include "evaluation/held_signals.hpp"
#include "kvc/error.hpp"
#include "support/child_process.hpp"
#include "support/temporary_file.hpp"

using namespace evaluation;

namespace {

std::string content(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// A folder that is there as long as the object, with all that is put into it.
class Folder {
 public:
  Folder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvc_test_folder_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  std::string file(const std::string& name) const { return (path_ / name).string(); }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_))
      names.push_back(entry.path().filename().string());
    std::ranges::sort(names);
    return names;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace

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

TEST_CASE("a file longer than the limit is not read to its end") {
  const TemporaryFile file("12345");
  CHECK(read_file(file.path(), "--text", 5) == "12345");
  CHECK_THROWS_AS(read_file(file.path(), "--text", 4), kvc::Error);
  CHECK_THROWS_AS(read_file("/dev/zero", "--text", 1 << 20), kvc::Error);
}

TEST_CASE("what an output file replaces stays until the new content is whole") {
  const Folder folder;
  const std::string path = folder.file("result.json");
  std::ofstream(path) << "old";
  {
    OutputFile unfinished(path);
    CHECK(content(path) == "old");
  }
  CHECK(content(path) == "old");
  OutputFile(path).write("new");
  CHECK(content(path) == "new");
  CHECK(folder.files() == std::vector<std::string>{"result.json"});
}

TEST_CASE("while an output file is waiting for its content, nothing of it lies in the folder") {
  const Folder folder;
  const ChildEnd end = run_in_child([&] {
    const OutputFile unfinished(folder.file("result.json"));
    return std::raise(SIGTERM);  // the destructor does not run
  });
  CHECK(end.signal == SIGTERM);
  CHECK(folder.files().empty());
}

TEST_CASE("what must not be interrupted is finished before a signal ends the program") {
  const Folder folder;
  const ChildEnd end = run_in_child([&] {
    {
      const HeldSignals held;
      std::raise(SIGINT);
      std::ofstream(folder.file("whole")) << "content";
    }
    return 0;
  });
  CHECK(end.signal == SIGINT);
  CHECK(content(folder.file("whole")) == "content");
}

TEST_CASE("a symbolic link stays, and the file that it leads to gets the content") {
  const Folder folder;
  std::ofstream(folder.file("real.json")) << "old";
  std::filesystem::permissions(folder.file("real.json"), std::filesystem::perms(0640));
  std::filesystem::create_symlink("real.json", folder.file("link.json"));
  std::filesystem::create_symlink("link.json", folder.file("second.json"));
  std::filesystem::create_symlink("not yet there.json", folder.file("dangling.json"));
  OutputFile(folder.file("second.json")).write("new");
  OutputFile(folder.file("dangling.json")).write("made");
  CHECK(std::filesystem::is_symlink(folder.file("link.json")));
  CHECK(std::filesystem::is_symlink(folder.file("second.json")));
  CHECK(content(folder.file("real.json")) == "new");
  CHECK(std::filesystem::status(folder.file("real.json")).permissions() == std::filesystem::perms(0640));
  CHECK(content(folder.file("not yet there.json")) == "made");
}

TEST_CASE("a pipe gets the content from its one opening, and without a reader it is refused at once") {
  const Folder folder;
  const std::string pipe = folder.file("pipe");
  REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
  CHECK_THROWS_AS(OutputFile(pipe), kvc::Error);
  const int reader = ::open(pipe.c_str(), O_RDONLY | O_NONBLOCK);
  OutputFile(pipe).write("through the pipe");
  char received[64] = {};
  CHECK(::read(reader, received, sizeof received) == 16);
  CHECK(std::string(received) == "through the pipe");
  ::close(reader);
}

TEST_CASE("a mapped file that is cut short ends the program with a message") {
  const TemporaryFile file(std::string(1 << 20, 'x')), messages("");
  const ChildEnd end = run_in_child([&] {
    ::dup2(::open(messages.path().c_str(), O_WRONLY), STDERR_FILENO);
    const char* const words[] = {"program"};
    return run_command("program", 1, words, [&](auto) {
      const engine::MappedFile mapped(file.path());
      std::filesystem::resize_file(file.path(), 0);
      print(std::string(1, static_cast<char>(mapped.bytes()[1 << 19])));
    });
  });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 2);
  CHECK(messages.content().find("cut short") != std::string::npos);
}

TEST_CASE("an error becomes exit code 2, success 0") {
  const char* const words[] = {"program", "--word"};
  CHECK(run_command("program", 2, words, [](auto rest) { CHECK(std::string(rest[0]) == "--word"); }) == 0);
  CHECK(run_command("program", 2, words, [](auto) { kvc::fail(kvc::ErrorCode::bad_file, "a test's complaint"); }) == 2);
}
