#pragma once
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

namespace fuzz {

using Input = std::vector<std::uint8_t>;

/// Makes new inputs of old ones, the same ones in every run: bits flip, bytes and numbers become extreme, pieces are cut out,
/// doubled, and taken from other inputs. It does not see which code an input reaches, as libFuzzer does.
class Mutator {
 public:
  Mutator(std::vector<Input> corpus, std::uint32_t seed, std::size_t longest);
  /// The next input: one of the corpus after a few changes, most often one.
  Input next();
  /// Adds an input to the corpus.
  void keep(const Input& input);

 private:
  std::size_t below(std::size_t bound) { return bound == 0 ? 0 : random_() % bound; }
  void change(Input& input);
  void set_number(Input& input);
  void insert_from_another(Input& input);

  std::vector<Input> corpus_;
  std::mt19937 random_;
  std::size_t longest_;
};

}  // namespace fuzz
