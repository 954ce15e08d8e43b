#pragma once
#include <chrono>
#include <string>

namespace evaluation {

/// Says on standard error what a long run is doing: on a terminal one line that changes, elsewhere one line per part.
class Progress {
 public:
  Progress();
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// A new part begins, e.g. "window 2 of 4".
  void begin(std::string part);
  /// Within the part; shown on terminals only.
  void step(const std::string& detail);

 private:
  void show(const std::string& line);

  bool terminal_;
  std::chrono::steady_clock::time_point start_;
  std::string part_;
};

}  // namespace evaluation
