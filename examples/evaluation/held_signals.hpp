#pragma once
#include <csignal>

namespace evaluation {

/// While the object lives, a request to end the program (Ctrl-C, a hangup, kill) waits. It takes effect when the object
/// goes. For the moments in which a program must not be interrupted; one object at a time.
class HeldSignals {
 public:
  HeldSignals();
  ~HeldSignals();
  HeldSignals(const HeldSignals&) = delete;
  HeldSignals& operator=(const HeldSignals&) = delete;

 private:
  static constexpr int Signals[] = {SIGINT, SIGTERM, SIGHUP};
  struct sigaction before_[3] = {};
};

}  // namespace evaluation
