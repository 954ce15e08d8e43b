#include "golden/case.hpp"

#include <kvc/error.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "evaluation/files.hpp"

namespace golden {
namespace {

using evaluation::Json;

[[noreturn]] void refuse(const std::string& sentence) {
  kvc::fail(kvc::ErrorCode::bad_file, sentence);
}

std::size_t whole_number(const Json& json, const std::string& what) {
  if (!json.is_number_unsigned() || json.get<std::uint64_t>() > 1'000'000'000)
    refuse(what + " must be a whole number, got " + json.dump());
  return json.get<std::size_t>();
}

TensorRole role_of(const std::string& word) {
  if (word == "input") return TensorRole::input;
  if (word == "expected") return TensorRole::expected;
  if (word == "intermediate") return TensorRole::intermediate;
  refuse("role must be input, expected or intermediate, got \"" + word + "\"");
}

template <class T>
std::vector<T> elements_of(const std::string& bytes) {
  std::vector<T> elements(bytes.size() / sizeof(T));
  if (!bytes.empty()) std::memcpy(elements.data(), bytes.data(), bytes.size());
  return elements;
}

Tensor load(const std::string& folder, const Json& entry, const Json& json) {
  Tensor tensor;
  tensor.name = json.at("name").get<std::string>();
  tensor.role = role_of(json.at("role").get<std::string>());
  std::size_t elements = 1;
  for (const Json& extent : json.at("shape")) {
    tensor.shape.push_back(whole_number(extent, tensor.name + ": an extent"));
    if (tensor.shape.back() != 0 && elements > (std::size_t{1} << 32) / tensor.shape.back())
      refuse(tensor.name + ": the shape is impossibly large");
    elements *= tensor.shape.back();
  }
  if (json.contains("suggested_tol") && !json.at("suggested_tol").is_null())
    tensor.tolerance = json.at("suggested_tol").get<double>();
  else if (entry.contains("tolerance") && entry.at("tolerance").contains(tensor.name))
    tensor.tolerance = entry.at("tolerance").at(tensor.name).get<double>();

  const auto type = json.at("dtype").get<std::string>();
  if (type != "float32" && type != "int32") refuse(tensor.name + ": dtype must be float32 or int32, got " + type);
  tensor.is_float = type == "float32";
  const std::string path = folder + "/" + json.at("file").get<std::string>();
  const std::string bytes = evaluation::read_file(path, "tensor " + tensor.name);
  if (bytes.size() != elements * 4)
    refuse(path + ": tensor " + tensor.name + " has " + std::to_string(elements * 4) +
           " bytes by its shape, but the file has " + std::to_string(bytes.size()));
  if (tensor.is_float)
    tensor.values = elements_of<float>(bytes);
  else
    tensor.integers = elements_of<std::int32_t>(bytes);
  return tensor;
}

}  // namespace

Case::Case(const std::string& folder, Json entry) : entry_(std::move(entry)) {
  for (const Json& json : entry_.at("tensors")) {
    tensors_.push_back(load(folder, entry_, json));
    if (find(tensors_.back().name) != &tensors_.back()) refuse("two tensors are named " + tensors_.back().name);
  }
}

bool Case::tie_ambiguous() const {
  return entry_.contains("tie_ambiguous") && !entry_.at("tie_ambiguous").is_null() &&
         entry_.at("tie_ambiguous").get<bool>();
}

bool Case::has_parameter(const std::string& name) const {
  return entry_.at("params").contains(name) && !parameter(name).is_null();
}
std::size_t Case::count(const std::string& name) const {
  return whole_number(parameter(name), "parameter " + name);
}
std::size_t Case::count(const std::string& name, std::size_t fallback) const {
  return has_parameter(name) ? count(name) : fallback;
}
double Case::number(const std::string& name, double fallback) const {
  return has_parameter(name) ? parameter(name).get<double>() : fallback;
}
bool Case::flag(const std::string& name, bool fallback) const {
  return has_parameter(name) ? parameter(name).get<bool>() : fallback;
}
std::string Case::word(const std::string& name, const std::string& fallback) const {
  return has_parameter(name) ? parameter(name).get<std::string>() : fallback;
}

const Tensor* Case::find(const std::string& name) const {
  const auto found =
      std::find_if(tensors_.begin(), tensors_.end(), [&](const Tensor& tensor) { return tensor.name == name; });
  return found == tensors_.end() ? nullptr : &*found;
}
const Tensor& Case::tensor(const std::string& name) const {
  const Tensor* found = find(name);
  if (!found) refuse("there is no tensor " + name);
  return *found;
}
const std::vector<float>& Case::floats(const std::string& name) const {
  if (!tensor(name).is_float) refuse("tensor " + name + " must be float32");
  return tensor(name).values;
}
std::vector<std::int32_t> Case::integers(const std::string& name) const {
  const Tensor& found = tensor(name);
  if (!found.is_float) return found.integers;
  std::vector<std::int32_t> whole;
  for (const float value : found.values) {
    if (!(std::abs(value) < 1e9f) || value != std::floor(value)) refuse("tensor " + name + " must hold whole numbers");
    whole.push_back(static_cast<std::int32_t>(value));
  }
  return whole;
}
std::vector<std::int32_t> Case::indices(const std::string& name, std::size_t first, std::size_t count) const {
  const std::vector<std::int32_t> all = integers(name);
  std::vector<std::int32_t> found;
  for (std::size_t i = first; i < std::min(first + count, all.size()); ++i)
    if (all[i] >= 0) found.push_back(all[i]);
  std::sort(found.begin(), found.end());
  return found;
}
std::vector<std::size_t> Case::shape(const std::string& name, std::size_t rank) const {
  std::vector<std::size_t> extents = tensor(name).shape;
  while (extents.size() > rank && extents.front() == 1) extents.erase(extents.begin());
  if (extents.size() != rank)
    refuse("tensor " + name + " must have " + std::to_string(rank) + " axes, it has " +
           std::to_string(tensor(name).shape.size()));
  return extents;
}
std::vector<float> Case::by_token(const std::string& name) const {
  const std::vector<std::size_t> extents = shape(name, 3);
  const std::size_t heads = extents[0], tokens = extents[1], dim = extents[2];
  const std::vector<float>& in = floats(name);
  std::vector<float> out(in.size());
  for (std::size_t h = 0; h < heads; ++h)
    for (std::size_t t = 0; t < tokens; ++t)
      std::copy_n(in.data() + (h * tokens + t) * dim, dim, out.data() + (t * heads + h) * dim);
  return out;
}

std::vector<Json> cases_of(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  return evaluation::read_json(path, "the golden cases", [&](const Json& manifest) {
    if (!manifest.contains("cases") || manifest.at("cases").empty()) refuse(path + ": there are no cases");
    return manifest.at("cases").get<std::vector<Json>>();
  });
}

}  // namespace golden
