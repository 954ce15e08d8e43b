#include "files.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string_view>
#include <utility>

#include "held_signals.hpp"
#include "kvc/error.hpp"

namespace evaluation {
namespace {

namespace fs = std::filesystem;

/// The path without symbolic links at its end; the file itself need not exist.
std::string follow_links(const std::string& path) {
  constexpr int MostLinks = 40;  // as many as Linux follows
  fs::path target = path;
  std::error_code error;
  for (int i = 0; i < MostLinks && fs::is_symlink(fs::symlink_status(target, error)); ++i) {
    const fs::path next = fs::read_symlink(target, error);
    if (error) break;
    target = target.parent_path() / next;  // an absolute `next` replaces all of it
  }
  return target.string();
}

/// Writes everything; false, with errno set, if that failed.
bool write_all(int descriptor, std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = ::write(descriptor, content.data(), content.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    content.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

/// Whether writing to the path means a device, a pipe, or what this program has open already (/dev/stdout).
bool is_device(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return false;
  return !S_ISREG(info.st_mode) || path.starts_with("/dev/") || path.starts_with("/proc/");
}

}  // namespace

std::string read_file(const std::string& path, const std::string& what, std::size_t most) {
  const auto refuse = [&](const std::string& reason) {
    kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{}: {} cannot be read: {}", what, path, reason));
  };
  std::error_code error;
  if (fs::is_directory(path, error)) refuse("it is a folder");
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
  if (!file) refuse(std::strerror(errno));
  std::string content;
  char piece[1 << 16];
  while (const std::size_t count = std::fread(piece, 1, sizeof piece, file.get())) {
    content.append(piece, count);
    if (content.size() > most) refuse(fmt::format("it has more than {} bytes", most));
  }
  if (std::ferror(file.get())) refuse(std::strerror(errno));
  return content;
}

OutputFile::OutputFile(std::string path) : path_(std::move(path)), target_(follow_links(path_)) {
  std::error_code error;
  if (fs::is_directory(target_, error))
    kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{} is a folder; name a file in it", path_));
  if (is_device(path_)) {
    open_device();
    return;
  }
  draft_ = fmt::format("{}.{}.part", target_, ::getpid());
  if (fs::exists(target_, error) && ::access(target_.c_str(), W_OK) != 0) refuse(std::strerror(errno));
  const HeldSignals held;  // nobody finds the draft that this leaves for a moment
  const int descriptor = create_draft();
  if (descriptor < 0) refuse(std::strerror(errno));
  ::close(descriptor);
  ::unlink(draft_.c_str());
}

OutputFile::~OutputFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void OutputFile::refuse(const std::string& reason) const {
  kvc::fail(kvc::ErrorCode::bad_file, fmt::format("{} cannot be written: {}", path_, reason));
}

/// A device stays open from now on: closing a pipe would tell its reader that nothing more comes.
void OutputFile::open_device() {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC | O_NONBLOCK);  // does not wait for a reader
  if (descriptor_ < 0) refuse(errno == ENXIO ? "it is a pipe that nobody reads" : std::strerror(errno));
  ::fcntl(descriptor_, F_SETFL, ::fcntl(descriptor_, F_GETFL) & ~O_NONBLOCK);
}

int OutputFile::create_draft() const {
  return ::open(draft_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
}

void OutputFile::write(const std::string& content) {
  if (descriptor_ < 0) return replace_target(content);
  if (!write_all(descriptor_, content)) refuse(std::strerror(errno));
}

void OutputFile::replace_target(const std::string& content) const {
  const HeldSignals held;
  const int descriptor = create_draft();
  if (descriptor < 0) refuse(std::strerror(errno));
  struct stat old {};
  if (::stat(target_.c_str(), &old) == 0) ::fchmod(descriptor, old.st_mode & 07777);
  bool stored = write_all(descriptor, content) && ::fsync(descriptor) == 0;
  int reason = errno;
  if (::close(descriptor) != 0 && stored) stored = false, reason = errno;
  if (stored && ::rename(draft_.c_str(), target_.c_str()) == 0) return;
  if (stored) reason = errno;
  ::unlink(draft_.c_str());
  refuse(std::strerror(reason));
}

}  // namespace evaluation
