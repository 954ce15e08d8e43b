#pragma once
#include <cstddef>
#include <string>

namespace evaluation {

/// More than any text or result of ours has; what is larger, or has no end, is something else.
inline constexpr std::size_t LargestFile = std::size_t{256} << 20;

/// The bytes of a file or of a pipe. Throws kvc::Error (bad_file) naming the file and the reason, also if it has more
/// than `most` bytes; `what` says what the file is for.
std::string read_file(const std::string& path, const std::string& what, std::size_t most = LargestFile);

/// A result file that is either written wholly or not at all: its content is written beside its place and then moved
/// there. Where the path is a symbolic link, the file that it leads to is replaced and the link stays. A terminal, a pipe
/// or another device is written directly.
class OutputFile {
 public:
  /// Throws kvc::Error (bad_file) if the file cannot be written. Leaves nothing behind until write() is called.
  explicit OutputFile(std::string path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Throws kvc::Error (bad_file) if the content cannot be stored; what was there before is then untouched. A request to
  /// end the program takes effect when the file is whole.
  void write(const std::string& content);

 private:
  [[noreturn]] void refuse(const std::string& reason) const;
  void open_device();
  int create_draft() const;
  void replace_target(const std::string& content) const;

  std::string path_;     ///< as it was given, for messages
  std::string target_;   ///< where the links of path_ lead
  std::string draft_;    ///< beside the target
  int descriptor_ = -1;  ///< of a device, which is open from the start
};

}  // namespace evaluation
