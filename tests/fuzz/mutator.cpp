#include "fuzz/mutator.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace fuzz {

Mutator::Mutator(std::vector<Input> corpus, std::uint32_t seed, std::size_t longest)
    : corpus_(std::move(corpus)), random_(seed), longest_(longest) {
  if (corpus_.empty()) corpus_.emplace_back();
}

Input Mutator::next() {
  Input input = corpus_[below(corpus_.size())];
  do change(input);
  while (below(2) == 0);
  if (input.size() > longest_) input.resize(longest_);
  return input;
}

void Mutator::keep(const Input& input) {
  corpus_.push_back(input);
}

void Mutator::change(Input& input) {
  const std::size_t at = below(input.size());
  const std::size_t count = std::min<std::size_t>(1 + below(16), input.size() - at);
  const auto begin = input.begin() + static_cast<std::ptrdiff_t>(at), end = begin + static_cast<std::ptrdiff_t>(count);
  switch (below(9)) {
    case 0:
      if (!input.empty()) input[at] = static_cast<std::uint8_t>(input[at] ^ (1u << below(8)));
      break;
    case 1:
      if (!input.empty()) input[at] = static_cast<std::uint8_t>(random_());
      break;
    case 2:
    case 3:
    case 4:
      set_number(input);
      break;
    case 5:
      input.erase(begin, end);
      break;
    case 6: {
      const Input piece(begin, end);
      input.insert(begin, piece.begin(), piece.end());
      break;
    }
    case 7:
      input.insert(begin, static_cast<std::uint8_t>(random_()));
      break;
    default:
      insert_from_another(input);
  }
}

void Mutator::set_number(Input& input) {
  // As bytes, and as digits where a digit stands.
  static constexpr std::uint64_t Numbers[] = {
      0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0xffffffff, ~std::uint64_t{0}};
  static constexpr const char* Digits[] = {"0", "1", "-1", "4294967295", "18446744073709551615", "1e300", "nan", "0.5"};
  const std::size_t at = below(input.size());
  if (at < input.size() && input[at] >= '0' && input[at] <= '9') {
    std::size_t end = at;
    while (end < input.size() && input[end] >= '0' && input[end] <= '9') ++end;
    const char* digits = Digits[below(std::size(Digits))];
    const auto begin = input.begin() + static_cast<std::ptrdiff_t>(at);
    const auto after = input.erase(begin, begin + static_cast<std::ptrdiff_t>(end - at));
    input.insert(after, digits, digits + std::strlen(digits));
    return;
  }
  const std::uint64_t number = Numbers[below(std::size(Numbers))];
  const std::size_t bytes = std::min<std::size_t>(std::size_t{1} << below(4), input.size() - at);
  if (bytes != 0) std::memcpy(input.data() + at, &number, bytes);
}

void Mutator::insert_from_another(Input& input) {
  const Input& other = corpus_[below(corpus_.size())];
  const std::size_t from = below(other.size()), count = std::min<std::size_t>(1 + below(64), other.size() - from);
  const auto begin = other.begin() + static_cast<std::ptrdiff_t>(from);
  input.insert(input.begin() + static_cast<std::ptrdiff_t>(below(input.size() + 1)), begin,
               begin + static_cast<std::ptrdiff_t>(count));
}

}  // namespace fuzz
