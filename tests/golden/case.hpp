#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "evaluation/json.hpp"

namespace golden {

/// What a tensor is to its case. Intermediates may be compared, expected ones must be.
enum class TensorRole : std::uint8_t { input, expected, intermediate };

/// A tensor of a case, row-major: float32 values or int32 integers.
struct Tensor {
  std::string name;
  TensorRole role = TensorRole::input;
  std::vector<std::size_t> shape;
  std::optional<double> tolerance;  ///< absolute, where the manifest states one
  bool is_float = true;
  std::vector<float> values;           ///< of float32
  std::vector<std::int32_t> integers;  ///< of int32

  std::size_t elements() const { return is_float ? values.size() : integers.size(); }
};

/// One case of a manifest: a policy or codec, its parameters, what went in and what came out of the reference code.
/// Reads the formats of both golden folders: a tolerance stands at its tensor (`suggested_tol`) or at the case
/// (`tolerance`, an object by tensor name). Whatever is missing or damaged throws kvc::Error (bad_file) with the place.
class Case {
 public:
  /// Loads every tensor of `entry`, a member of the array `cases`; files are relative to `folder`.
  Case(const std::string& folder, evaluation::Json entry);

  std::string name() const { return entry_.at("name").get<std::string>(); }
  std::string policy() const { return entry_.at("policy").get<std::string>(); }
  /// The parameter `variant`, or nothing.
  std::string variant() const { return word("variant", ""); }
  /// The whole entry, for what is not named here (`compare_codes`, `mean_abs_err`, …).
  const evaluation::Json& entry() const { return entry_; }
  /// Several index sets are equally right: compare their scores.
  bool tie_ambiguous() const;

  /// Whether a parameter is there and not null.
  bool has_parameter(const std::string& name) const;
  const evaluation::Json& parameter(const std::string& name) const { return entry_.at("params").at(name); }
  /// Parameters by type; without a fallback they must be there.
  std::size_t count(const std::string& name) const;
  std::size_t count(const std::string& name, std::size_t fallback) const;
  double number(const std::string& name, double fallback) const;
  bool flag(const std::string& name, bool fallback) const;
  std::string word(const std::string& name, const std::string& fallback) const;

  const std::vector<Tensor>& tensors() const { return tensors_; }
  bool has(const std::string& tensor) const { return find(tensor) != nullptr; }
  const Tensor& tensor(const std::string& name) const;
  const std::vector<float>& floats(const std::string& name) const;
  /// Whole numbers, also of a float32 tensor that holds nothing else (the quant folder stores codes so).
  std::vector<std::int32_t> integers(const std::string& name) const;
  /// Elements [first, first + count) of a table of indices, ascending, without its padding (-1).
  std::vector<std::int32_t> indices(const std::string& name, std::size_t first, std::size_t count) const;
  /// The extents as `rank` axes: leading axes of 1 beyond them (a batch of one) are left out.
  std::vector<std::size_t> shape(const std::string& name, std::size_t rank) const;
  /// A float tensor [heads, tokens, dim] as a cache takes it: [tokens, heads * dim].
  std::vector<float> by_token(const std::string& name) const;

 private:
  const Tensor* find(const std::string& name) const;

  evaluation::Json entry_;
  std::vector<Tensor> tensors_;
};

/// The cases of a folder's manifest.json, not loaded yet. Throws kvc::Error (bad_file) if there are none.
std::vector<evaluation::Json> cases_of(const std::string& folder);

}  // namespace golden
