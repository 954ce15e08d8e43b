#include "files.hpp"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "kvc/error.hpp"

namespace evaluation {

std::string read_file(const std::string& path, const std::string& what) {
  const auto refuse = [&](const std::string& reason) {
    kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{}: {} cannot be read: {}", what, path, reason));
  };
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) refuse("it is a folder");
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse(std::strerror(errno));
  std::string content(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) refuse("a read error");
  return content;
}

OutputFile::OutputFile(std::string path) : path_(std::move(path)) {
  std::error_code error;
  if (std::filesystem::is_directory(path_, error))
    kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{} is a folder; name a file in it", path_));
  // A terminal or pipe is written in place: nothing can be moved onto it.
  const bool in_place = std::filesystem::exists(path_, error) && !std::filesystem::is_regular_file(path_, error);
  draft_ = in_place ? path_ : path_ + ".part";
  if (!std::ofstream(draft_, std::ios::binary))
    kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{} cannot be written: {}", path_, std::strerror(errno)));
}

OutputFile::~OutputFile() {
  std::error_code error;
  if (draft_ != path_) std::filesystem::remove(draft_, error);
}

void OutputFile::write(const std::string& content) {
  std::ofstream file(draft_, std::ios::binary);
  file << content;
  file.close();
  std::error_code error;
  if (file && draft_ != path_) std::filesystem::rename(draft_, path_, error);
  if (!file || error) kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{} cannot be written", path_));
}

}  // namespace evaluation
