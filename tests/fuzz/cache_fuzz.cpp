// Calls of a cache, in any order, against the naive model in double precision. Byte 0 chooses the policy, byte 1 the group of
// query heads; from then on each call is a byte, followed by its numbers.
#include <algorithm>
#include <memory>
#include <vector>

#include "fuzz/fuzz_input.hpp"
#include "support/naive_pair.hpp"

namespace {

using support::NaivePair, support::PolicyCase;

constexpr std::size_t TextTokens = 600, MostSlots = 250;

/// The policies of the list that promise to equal the naive model on any walk.
const std::vector<const PolicyCase*>& walkers() {
  static const std::vector<const PolicyCase*> all = [] {
    std::vector<const PolicyCase*> list;
    for (const PolicyCase& entry : support::all_policies())
      if (!entry.exemption(support::Invariant::walk)) list.push_back(&entry);
    return list;
  }();
  return all;
}

/// Sequences of one policy, and the calls that a script makes of them.
class Walk {
 public:
  Walk(const PolicyCase& entry, std::size_t group)
      : entry_(&entry), shape_(support::small_shape(group)), text_(shape_, TextTokens, 3) {
    pairs_.push_back(std::make_unique<NaivePair>(shape_, entry));
  }

  void step(fuzz::Script& script) {
    NaivePair& pair = *pairs_.back();
    if (pair.seen() > MostSlots) return restart();
    const std::size_t call = script.below(18);
    if (in_prompt_ || call < 2) {
      in_prompt_ = call == 0;
      pair.feed(tokens(script, 40), in_prompt_ ? kvc::Event::prompt_chunk : kvc::Event::prompt_end);
    } else if (call < 7) {
      pair.feed(tokens(script, call == 6 ? 4 : 1), kvc::Event::decode);
    } else if (call == 7) {
      const std::size_t drafted = 1 + script.below(4);
      for (std::size_t i = 0; i < drafted; ++i) pair.draft(tokens(script, 1));
      pair.accept(script.below(drafted + 1));
    } else if (call == 8) {
      const auto back = static_cast<kvc::Position>(script.below(12));
      pair.truncate(std::max<kvc::Position>(0, pair.next() - back));
    } else if (call == 9) {
      if (entry_->compresses) pair.compress();
    } else if (call == 10) {
      pair.make_room(1 + script.below(12));
    } else if (call == 11) {
      pair.attend(tokens(script, 1));
    } else if (call == 12) {
      if (pairs_.size() < 3) pairs_.push_back(std::make_unique<NaivePair>(pair.fork()));
    } else if (call == 13) {
      std::rotate(pairs_.begin(), pairs_.begin() + 1, pairs_.end());
    } else if (call == 14) {
      pair.probe(tokens(script, 4));
    } else if (call == 15) {
      script.below(2) == 0 ? pair.save_and_load() : pair.clear();
    } else if (call == 16) {
      const auto first = static_cast<kvc::Position>(script.below(static_cast<std::size_t>(pair.next()) + 1));
      pair.remove(first, first + static_cast<kvc::Position>(script.below(12)));
    } else {
      const auto first = static_cast<kvc::Position>(script.below(static_cast<std::size_t>(pair.next()) + 1));
      const auto last = script.below(2) == 0 ? pair.next() : first + static_cast<kvc::Position>(script.below(12));
      pair.shift(first, last, static_cast<kvc::Position>(script.below(40)) - 20);
    }
  }
  void check() const {
    for (const auto& pair : pairs_) pair->check_rows();
  }

 private:
  support::LayeredTokens::Slice tokens(fuzz::Script& script, std::size_t most) {
    const std::size_t count = 1 + script.below(most);
    at_ = at_ + count > TextTokens ? 0 : at_;
    const std::size_t first = at_;
    at_ += count;
    return text_.slice(first, count);
  }
  void restart() {
    pairs_.back() = std::make_unique<NaivePair>(shape_, *entry_);
    in_prompt_ = false;
  }

  const PolicyCase* entry_;
  kvc::CacheShape shape_;
  support::LayeredTokens text_;
  std::vector<std::unique_ptr<NaivePair>> pairs_;  // the script works on the last
  std::size_t at_ = 0;
  bool in_prompt_ = false;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Script script(data, size);
  const PolicyCase& entry = *walkers()[script.below(walkers().size())];
  Walk walk(entry, 1 + script.below(3));
  std::size_t step = 0;
  try {
    for (; !script.ended() && step < 200; ++step) walk.step(script);
    walk.check();
    fuzz::note_understood();
  } catch (const support::Mismatch& mismatch) {
    fuzz::fail(entry.text + ", call " + std::to_string(step) + ": " + mismatch.what());
  }
  return 0;
}
