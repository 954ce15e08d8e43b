#pragma once
#include <string>

namespace evaluation {

/// The bytes of a file. Throws kvc::Error (bad_file) naming the file and the reason; `what` says what it is for.
std::string read_file(const std::string& path, const std::string& what);

/// A result file that is either written wholly or not at all: it takes shape beside its place and then moves there.
class OutputFile {
 public:
  /// Throws kvc::Error (bad_file) if the file could not be written later.
  explicit OutputFile(std::string path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  /// Throws kvc::Error (bad_file) if the content cannot be stored; what was there before is then untouched.
  void write(const std::string& content);

 private:
  std::string path_, draft_;
};

}  // namespace evaluation
