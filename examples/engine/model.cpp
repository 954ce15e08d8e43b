#include "model.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dequantize.hpp"
#include "kvc/error.hpp"
#include "linear_kernels.hpp"

namespace engine {
namespace {

/// Rows that pass through a layer's linear parts together: enough to share each unpacked weight, little enough for the
/// 3 MB of intermediate rows to stay in the cache.
constexpr std::size_t RowBlock = 256;
/// Rows that one piece of elementwise work takes.
constexpr std::size_t RowGrain = 16;

/// A tensor of this shape whose elements are all finite.
const Tensor& shaped_tensor(const GGUFFile& file, const std::string& name, std::size_t columns, std::size_t rows) {
  const Tensor& tensor = file.tensor(name);
  if (tensor.columns() != columns || tensor.rows() != rows)
    kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": tensor " + name + " is [" + std::to_string(tensor.rows()) +
                                            ", " + std::to_string(tensor.columns()) + "], expected [" +
                                            std::to_string(rows) + ", " + std::to_string(columns) + "]");
  if (!all_finite(tensor))
    kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": tensor " + name + " has elements that are no finite numbers");
  return tensor;
}

std::vector<float> load_vector(const GGUFFile& file, const std::string& name, std::size_t size) {
  const Tensor& tensor = shaped_tensor(file, name, size, 1);
  std::vector<float> values(size);
  dequantize_row(tensor, 0, values);
  return values;
}

bool row_finite(std::span<const float> row) {
  bool finite = true;
  for (const float x : row) finite &= (std::bit_cast<std::uint32_t>(x) & 0x7F800000u) != 0x7F800000u;
  return finite;
}

/// out = x / sqrt(mean(x^2) + epsilon) * weight
void rms_norm(std::span<const float> x, std::span<const float> weight, float epsilon, std::span<float> out) {
  // Several partial sums: one chain of additions would be slower and less exact.
  float partial[16] = {};
  std::size_t i = 0;
  for (; i + 16 <= x.size(); i += 16)
    for (std::size_t j = 0; j < 16; ++j) partial[j] += x[i + j] * x[i + j];
  for (; i < x.size(); ++i) partial[0] += x[i] * x[i];
  double sum = 0;
  for (const float part : partial) sum += double{part};
  const float scale = 1.0f / std::sqrt(static_cast<float>(sum / static_cast<double>(x.size())) + epsilon);
  for (std::size_t j = 0; j < x.size(); ++j) out[j] = x[j] * scale * weight[j];
}

/// Rotates the pairs (2i, 2i+1) of every head in the row.
void rotate_row(std::span<float> row, std::size_t head_dim, std::span<const float> sines,
                std::span<const float> cosines) {
  for (std::size_t head = 0; head < row.size(); head += head_dim) {
    for (std::size_t i = 0; i < sines.size(); ++i) {
      float& even = row[head + 2 * i];
      float& odd = row[head + 2 * i + 1];
      const float rotated = even * cosines[i] - odd * sines[i];
      odd = even * sines[i] + odd * cosines[i];
      even = rotated;
    }
  }
}

void add_rows(kvc::ConstRows from, kvc::Rows<float> to, std::size_t row) {
  for (std::size_t i = 0; i < to.dim; ++i) to[row][i] += from[row][i];
}

/// Runs each_row(0 … count - 1), in pieces of several rows.
template <class EachRow>
void for_each_row(std::size_t count, kvc::Executor& executor, EachRow each_row) {
  executor.parallel_for((count + RowGrain - 1) / RowGrain, [&](std::size_t piece) {
    const std::size_t end = std::min(count, (piece + 1) * RowGrain);
    for (std::size_t row = piece * RowGrain; row < end; ++row) each_row(row);
  });
}

}  // namespace

void Workspace::reserve(const Config& config, std::size_t tokens) {
  const std::size_t block = std::min(tokens, RowBlock);
  const std::size_t per_token = config.hidden + 2 * config.query_width() + 2 * config.kv_width();
  const std::size_t needed = tokens * per_token + block * (config.hidden + 2 * config.ffn);
  if (memory_.size() < needed) memory_.resize(needed);
  float* next = memory_.data();
  auto take = [&](std::size_t rows, std::size_t dim) {
    const kvc::Rows<float> part(next, rows, dim);
    next += rows * dim;
    return part;
  };
  hidden_ = take(tokens, config.hidden);
  q_ = take(tokens, config.query_width());
  k_ = take(tokens, config.kv_width());
  v_ = take(tokens, config.kv_width());
  attended_ = take(tokens, config.query_width());
  normed_ = take(block, config.hidden);
  gate_ = take(block, config.ffn);
  up_ = take(block, config.ffn);
  sines_.resize(tokens * config.inv_freq.size());
  cosines_.resize(tokens * config.inv_freq.size());
}

Model Model::load(const std::string& path, kvc::Executor& executor, Arithmetic arithmetic) {
  return Model(GGUFFile(path), executor, arithmetic);
}

Model::Model(const GGUFFile& file, kvc::Executor& executor, Arithmetic arithmetic)
    : config_(read_config(file)), tokenizer_(file), executor_(&executor), arithmetic_(arithmetic) {
  if (tokenizer_.vocabulary() > config_.vocabulary)
    kvc::fail(kvc::ErrorCode::bad_file, file.path() + ": the tokenizer has " + std::to_string(tokenizer_.vocabulary()) +
                                            " tokens, the embedding only " + std::to_string(config_.vocabulary));
  embedding_ = copy_of(shaped_tensor(file, "token_embd.weight", config_.hidden, config_.vocabulary));
  output_norm_ = load_vector(file, "output_norm.weight", config_.hidden);
  layers_.reserve(config_.layers);
  for (std::size_t i = 0; i < config_.layers; ++i) layers_.push_back(load_layer(file, i));
  output_ = std::make_unique<WeightMatrix>(
      config_.tied ? embedding_ : shaped_tensor(file, "output.weight", config_.hidden, config_.vocabulary), *memory_);
}

/// The tensor with its data in the model's own memory.
Tensor Model::copy_of(const Tensor& tensor) const {
  Tensor copy = tensor;
  auto* data = static_cast<std::byte*>(memory_->allocate(tensor.data.size()));
  std::memcpy(data, tensor.data.data(), tensor.data.size());
  copy.data = {data, tensor.data.size()};
  return copy;
}

Model::Layer Model::load_layer(const GGUFFile& file, std::size_t index) const {
  const std::string prefix = "blk." + std::to_string(index) + ".";
  if (file.find_tensor(prefix + "attn_q.bias"))
    kvc::fail(kvc::ErrorCode::incompatible, file.path() + ": attention biases are not supported");
  auto matrix = [&](const char* name, std::size_t inputs, std::size_t outputs) {
    return WeightMatrix(shaped_tensor(file, prefix + name + ".weight", inputs, outputs), *memory_);
  };
  const std::size_t hidden = config_.hidden;
  return {load_vector(file, prefix + "attn_norm.weight", hidden),
          load_vector(file, prefix + "ffn_norm.weight", hidden),
          matrix("attn_q", hidden, config_.query_width()),
          matrix("attn_k", hidden, config_.kv_width()),
          matrix("attn_v", hidden, config_.kv_width()),
          matrix("attn_output", config_.query_width(), hidden),
          matrix("ffn_gate", hidden, config_.ffn),
          matrix("ffn_up", hidden, config_.ffn),
          matrix("ffn_down", config_.ffn, hidden)};
}

kvc::CacheShape Model::cache_shape() const {
  kvc::CacheShape shape;
  shape.layers = config_.layers;
  shape.query_heads = config_.query_heads;
  shape.kv_heads = config_.kv_heads;
  shape.head_dim = config_.head_dim;
  // GGUF stores the rows of Q and K so that neighbouring elements form a rotated pair.
  shape.rotary = {config_.inv_freq, true};
  return shape;
}

void Model::check_input(std::span<const int> tokens, std::span<const kvc::Position> positions,
                        kvc::Rows<float> logits) const {
  auto refuse = [](const std::string& sentence) { kvc::fail(kvc::ErrorCode::invalid_argument, sentence); };
  if (positions.size() != tokens.size())
    refuse("positions: " + std::to_string(positions.size()) + " for " + std::to_string(tokens.size()) + " tokens");
  for (const int token : tokens)
    if (token < 0 || static_cast<std::size_t>(token) >= config_.vocabulary)
      refuse("token id " + std::to_string(token) + " is outside the vocabulary of " +
             std::to_string(config_.vocabulary));
  for (const kvc::Position position : positions)
    if (position < 0 || static_cast<std::size_t>(position) >= config_.context)
      refuse("position " + std::to_string(position) + " is outside the model's context of " +
             std::to_string(config_.context) + " tokens");
  if (logits.count > 1 && logits.count != tokens.size())
    refuse("logits: " + std::to_string(logits.count) + " rows, expected 0, 1 or " + std::to_string(tokens.size()));
  if (logits.count > 0 && logits.dim != config_.vocabulary)
    refuse("logits: rows of " + std::to_string(logits.dim) + ", expected " + std::to_string(config_.vocabulary));
}

void Model::forward(std::span<const int> tokens, std::span<const kvc::Position> positions, Attention attention,
                    kvc::Rows<float> logits, Workspace& workspace) const {
  check_input(tokens, positions, logits);
  if (tokens.empty()) return;
  workspace.reserve(config_, tokens.size());
  embed(tokens, workspace.hidden_);
  prepare_rotary(positions, workspace);
  for (std::size_t index = 0; index < layers_.size(); ++index) {
    project(layers_[index], workspace);
    kvc::Tokens rows;
    rows.q = workspace.q_;
    rows.k = workspace.k_;
    rows.v = workspace.v_;
    rows.positions = positions;
    attention(index, rows, workspace.attended_);
    finish_layer(layers_[index], workspace);
  }
  if (logits.count > 0) head(workspace.hidden().subrows(tokens.size() - logits.count, logits.count), logits);
}

void Model::embed(std::span<const int> tokens, kvc::Rows<float> hidden) const {
  for (std::size_t row = 0; row < tokens.size(); ++row)
    dequantize_row(embedding_, static_cast<std::size_t>(tokens[row]), hidden[row]);
}

void Model::prepare_rotary(std::span<const kvc::Position> positions, Workspace& workspace) const {
  const std::size_t pairs = config_.inv_freq.size();
  for_each_row(positions.size(), *executor_, [&](std::size_t row) {
    for (std::size_t i = 0; i < pairs; ++i) {
      const float angle = static_cast<float>(positions[row]) * config_.inv_freq[i];
      workspace.sines_[row * pairs + i] = std::sin(angle);
      workspace.cosines_[row * pairs + i] = std::cos(angle);
    }
  });
}

/// Norm, the three projections, and the rotary embedding, for all rows of the pass.
void Model::project(const Layer& layer, Workspace& workspace) const {
  const std::size_t tokens = workspace.hidden_.count, pairs = config_.inv_freq.size();
  for (std::size_t begin = 0; begin < tokens; begin += RowBlock) {
    const std::size_t rows = std::min(RowBlock, tokens - begin);
    const auto normed = workspace.normed_.subrows(0, rows);
    const auto hidden = workspace.hidden_.subrows(begin, rows);
    const auto q = workspace.q_.subrows(begin, rows), k = workspace.k_.subrows(begin, rows);
    for_each_row(rows, *executor_, [&](std::size_t row) {
      rms_norm(hidden[row], layer.attention_norm, config_.rms_epsilon, normed[row]);
    });
    const Product products[] = {{&layer.q, q}, {&layer.k, k}, {&layer.v, workspace.v_.subrows(begin, rows)}};
    multiply(normed, products, *executor_, arithmetic_);
    for_each_row(rows, *executor_, [&](std::size_t row) {
      const std::span<const float> sines(workspace.sines_.data() + (begin + row) * pairs, pairs);
      const std::span<const float> cosines(workspace.cosines_.data() + (begin + row) * pairs, pairs);
      rotate_row(q[row], config_.head_dim, sines, cosines);
      rotate_row(k[row], config_.head_dim, sines, cosines);
    });
  }
}

/// hidden += attention_out(attended); hidden += down(silu(gate(norm)) * up(norm))
void Model::finish_layer(const Layer& layer, Workspace& workspace) const {
  const std::size_t tokens = workspace.hidden_.count;
  const LinearKernels& kernels = linear_kernels();
  for (std::size_t begin = 0; begin < tokens; begin += RowBlock) {
    const std::size_t rows = std::min(RowBlock, tokens - begin);
    const auto hidden = workspace.hidden_.subrows(begin, rows);
    const auto normed = workspace.normed_.subrows(0, rows);
    const auto gate = workspace.gate_.subrows(0, rows), up = workspace.up_.subrows(0, rows);
    multiply(workspace.attended_.subrows(begin, rows), layer.attention_out, normed, *executor_, arithmetic_);
    for_each_row(rows, *executor_, [&](std::size_t row) {
      add_rows(normed, hidden, row);
      rms_norm(hidden[row], layer.ffn_norm, config_.rms_epsilon, normed[row]);
    });
    const Product products[] = {{&layer.gate, gate}, {&layer.up, up}};
    multiply(normed, products, *executor_, arithmetic_);
    for_each_row(rows, *executor_,
                 [&](std::size_t row) { kernels.swiglu(gate[row].data(), up[row].data(), config_.ffn); });
    multiply(gate, layer.down, normed, *executor_, arithmetic_);
    for_each_row(rows, *executor_, [&](std::size_t row) { add_rows(normed, hidden, row); });
  }
}

void Model::head(kvc::ConstRows hidden, kvc::Rows<float> logits) const {
  std::vector<float> normed(hidden.count * config_.hidden);
  const kvc::Rows<float> rows(normed.data(), hidden.count, config_.hidden);
  for_each_row(hidden.count, *executor_,
               [&](std::size_t row) { rms_norm(hidden[row], output_norm_, config_.rms_epsilon, rows[row]); });
  multiply(rows, *output_, logits, *executor_, arithmetic_);
  for_each_row(logits.count, *executor_, [&](std::size_t row) {
    if (!row_finite(logits[row]))
      kvc::fail(kvc::ErrorCode::non_finite,
                "the model's logits are no finite numbers: its weights or what its cache "
                "gave back are beyond what f32 can hold");
  });
}

}  // namespace engine
