#pragma once
#include <cstddef>
#include <span>
#include <string>

namespace engine {

/// A whole file mapped read-only; kvc::Error (bad_file) if it cannot be opened or is not a regular file.
///
/// The size is that of the file when it was opened. If another program cuts the file short while it is mapped, reading
/// what is gone raises the signal SIGBUS, as with every mapping: evaluation::run_command ends a program with a message
/// then. A Model keeps no mapping once it is loaded.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace engine
