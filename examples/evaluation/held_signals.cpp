#include "held_signals.hpp"

#include <iterator>

namespace evaluation {
namespace {

volatile std::sig_atomic_t received = 0;

void remember(int signal) {
  received = signal;
}

}  // namespace

HeldSignals::HeldSignals() {
  received = 0;
  struct sigaction action {};
  action.sa_handler = remember;
  action.sa_flags = SA_RESTART;
  for (std::size_t i = 0; i < std::size(Signals); ++i) {
    ::sigaction(Signals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler != SIG_IGN) ::sigaction(Signals[i], &action, nullptr);
  }
}

HeldSignals::~HeldSignals() {
  for (std::size_t i = 0; i < std::size(Signals); ++i) ::sigaction(Signals[i], &before_[i], nullptr);
  if (received != 0) std::raise(static_cast<int>(received));
}

}  // namespace evaluation
