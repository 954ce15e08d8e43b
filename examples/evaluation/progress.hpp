#pragma once
#include <chrono>
#include <string>

namespace evaluation {

/// " (about 3 min left)": what is left of work of which the share `done` > 0 took so long.
std::string time_left(std::chrono::duration<double> passed, double done);

/// Says on standard error what a long run is doing: on a terminal one line that changes, elsewhere one line per part.
class Progress {
 public:
  Progress();
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// A new part begins, e.g. "window 2 of 4". `done`: the share of the work that is behind, from 0 to 1, where it is known;
  /// then the time that is left is told too.
  void begin(std::string part, double done = 0);
  /// Within the part; shown on terminals only.
  void step(const std::string& detail);

 private:
  void show(const std::string& line);

  bool terminal_;
  std::chrono::steady_clock::time_point start_;
  std::string part_;
};

}  // namespace evaluation
