#include "engine/matmul.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "catch_shim.hpp"
#include "engine/dequantize.hpp"
#include "engine/integer_kernels.hpp"
#include "engine/linear_kernels.hpp"
#include "engine/thread_pool.hpp"
#include "kvc/error.hpp"
#include "kvc/half.hpp"

using engine::Tensor;
using engine::TensorType;

namespace {

constexpr TensorType AllTypes[] = {TensorType::f32,  TensorType::f16,  TensorType::bf16, TensorType::q4_0,
                                   TensorType::q4_1, TensorType::q5_0, TensorType::q5_1, TensorType::q8_0,
                                   TensorType::q2_k, TensorType::q3_k, TensorType::q4_k, TensorType::q5_k,
                                   TensorType::q6_k};

/// Byte offsets of the f16 numbers in a block; random bytes elsewhere are valid codes.
std::vector<std::size_t> half_offsets(TensorType type) {
  switch (type) {
    case TensorType::f16:
      return {0};
    case TensorType::q4_0:
    case TensorType::q5_0:
    case TensorType::q8_0:
      return {0};
    case TensorType::q4_1:
    case TensorType::q5_1:
    case TensorType::q4_k:
    case TensorType::q5_k:
      return {0, 2};
    case TensorType::q2_k:
      return {80, 82};
    case TensorType::q3_k:
      return {108};
    case TensorType::q6_k:
      return {208};
    case TensorType::f32:
    case TensorType::bf16:
      break;
  }
  return {};
}

/// A tensor of random blocks that owns its bytes.
struct RandomTensor {
  std::vector<std::byte> bytes;
  Tensor tensor;

  RandomTensor(TensorType type, std::size_t columns, std::size_t rows, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    tensor = {"random", type, {columns, rows}, {}};
    const engine::BlockLayout layout = engine::block_layout(type);
    bytes.resize(tensor.row_bytes() * rows);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    for (std::size_t block = 0; block < bytes.size(); block += layout.bytes) {
      for (const std::size_t offset : half_offsets(type)) put(block + offset, kvc::to_half(0.05f * normal(random)));
      if (type == TensorType::f32) put(block, normal(random));
      if (type == TensorType::bf16) put(block, kvc::to_bfloat(normal(random)));
    }
    tensor.data = bytes;
  }

  template <class T>
  void put(std::size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof value);
  }
};

/// Largest difference to the product in double, relative to the largest entry of the product.
double product_error(const Tensor& tensor, std::size_t row_count, kvc::Executor& executor,
                     engine::Arithmetic arithmetic = engine::Arithmetic::f32) {
  const std::size_t inputs = tensor.columns(), outputs = tensor.rows();
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  std::vector<float> x(row_count * inputs), out(row_count * outputs, NAN), weights(inputs);
  for (float& value : x) value = normal(random);
  const engine::WeightMatrix matrix(tensor);
  engine::multiply({x.data(), row_count, inputs}, matrix, {out.data(), row_count, outputs}, executor, arithmetic);
  double largest = 0, error = 0;
  for (std::size_t o = 0; o < outputs; ++o) {
    engine::dequantize_row(tensor, o, weights);
    for (std::size_t r = 0; r < row_count; ++r) {
      double sum = 0;
      for (std::size_t i = 0; i < inputs; ++i) sum += double{weights[i]} * double{x[r * inputs + i]};
      largest = std::max(largest, std::abs(sum));
      const double difference = std::abs(sum - double{out[r * outputs + o]});
      error = std::isnan(difference) ? INFINITY : std::max(error, difference);
    }
  }
  return error / largest;
}

/// Restores the best kernels however the test ends.
struct WithKernels {
  explicit WithKernels(const engine::LinearKernels* kernels) { engine::use_linear_kernels(kernels); }
  ~WithKernels() { engine::use_linear_kernels(nullptr); }
};

}  // namespace

TEST_CASE("every format, instruction set and number of rows gives the product in double") {
  kvc::SerialExecutor serial;
  for (const engine::LinearKernels* kernels : engine::available_linear_kernels()) {
    const WithKernels with(kernels);
    for (const TensorType type : AllTypes) {
      const RandomTensor random(type, 256, 83, 1);
      const bool rounded_to_half = engine::WeightMatrix(random.tensor).format() == engine::PanelFormat::half;
      for (const std::size_t rows : {1u, 2u, 3u, 5u, 8u, 9u, 17u, 40u}) {
        INFO(kernels->name << " " << engine::type_name(type) << " " << rows << " rows");
        CHECK(product_error(random.tensor, rows, serial) < (rounded_to_half ? 1e-3 : 2e-6));
      }
    }
  }
}

TEST_CASE("fast arithmetic gives the product up to the rounding of activations to 8 bits") {
  engine::ThreadPool pool(2);
  for (const TensorType type : AllTypes) {
    const RandomTensor random(type, 256, 83, 8);
    const auto format = engine::WeightMatrix(random.tensor).format();
    const bool rounds = format == engine::PanelFormat::nibble || format == engine::PanelFormat::byte;
    for (const std::size_t rows : {1u, 2u, 7u, 8u, 9u, 300u}) {
      INFO(engine::type_name(type) << " " << rows << " rows");
      const double error = product_error(random.tensor, rows, pool, engine::Arithmetic::fast);
      CHECK(error < (rounds ? 0.01 : 1e-3));
      if (rounds && engine::integer_kernels()) CHECK(error > 1e-5);
    }
  }
}

TEST_CASE("fast arithmetic is exact where activations are whole numbers up to 127") {
  kvc::SerialExecutor serial;
  const RandomTensor random(TensorType::q8_0, 64, 20, 9);
  const engine::WeightMatrix weights(random.tensor);
  std::vector<float> x(2 * 64, 0.0f), fast(2 * 20), exact(2 * 20);
  for (std::size_t i = 0; i < 64; ++i)
    x[i] = i % 32 == 5 ? -127.0f : static_cast<float>(i % 50);  // the second row is zero
  engine::multiply({x.data(), 2, 64}, weights, {fast.data(), 2, 20}, serial, engine::Arithmetic::fast);
  engine::multiply({x.data(), 2, 64}, weights, {exact.data(), 2, 20}, serial);
  for (std::size_t i = 0; i < fast.size(); ++i) CHECK(std::abs(fast[i] - exact[i]) < 0.01f);
  CHECK(std::all_of(fast.begin() + 20, fast.end(), [](float value) { return value == 0.0f; }));
}

TEST_CASE("rows beyond one chunk and outputs that fill no panel are all computed") {
  engine::ThreadPool pool(2);
  CHECK(product_error(RandomTensor(TensorType::q4_1, 64, 50, 2).tensor, 300, pool) < 2e-6);
  CHECK(product_error(RandomTensor(TensorType::q8_0, 32, 1, 2).tensor, 1, pool) < 2e-6);
}

TEST_CASE("products that share their rows are computed in one call") {
  engine::ThreadPool pool(2);
  const RandomTensor first(TensorType::q4_1, 64, 48, 3), second(TensorType::q8_0, 64, 20, 4);
  const engine::WeightMatrix a(first.tensor), b(second.tensor);
  std::vector<float> x(3 * 64, 0.5f), together(3 * 68), apart(3 * 68);
  const engine::Product products[] = {{&a, {together.data(), 3, 48}}, {&b, {together.data() + 3 * 48, 3, 20}}};
  engine::multiply({x.data(), 3, 64}, products, pool);
  engine::multiply({x.data(), 3, 64}, a, {apart.data(), 3, 48}, pool);
  engine::multiply({x.data(), 3, 64}, b, {apart.data() + 3 * 48, 3, 20}, pool);
  CHECK(together == apart);
}

TEST_CASE("swiglu is x * sigmoid(x) * up on every instruction set, up to a vanishing rest") {
  std::vector<float> inputs;
  for (int i = -450; i < 460; ++i) inputs.push_back(0.25f * static_cast<float>(i));
  const std::vector<float> up(inputs.size(), 2.0f);
  for (const engine::LinearKernels* kernels : engine::available_linear_kernels()) {
    std::vector<float> gate = inputs;
    kernels->swiglu(gate.data(), up.data(), gate.size());
    double worst = 0;
    for (std::size_t i = 0; i < gate.size(); ++i) {
      const double x = double{inputs[i]}, expected = 2.0 * x / (1.0 + std::exp(-x));
      const double difference = std::abs(double{gate[i]} - expected);
      // Below e^-87 the exponential stops: what it should be and what it is are both under 1e-34.
      worst = difference <= 1e-34 ? worst : std::max(worst, difference / std::abs(expected));
      if (std::isnan(difference)) worst = INFINITY;
    }
    INFO(kernels->name);
    CHECK(worst < 1e-6);
  }
}

TEST_CASE("shapes that do not fit are refused before anything is written") {
  kvc::SerialExecutor serial;
  const RandomTensor random(TensorType::q8_0, 64, 16, 5);
  const engine::WeightMatrix weights(random.tensor);
  std::vector<float> x(128), out(32);
  REQUIRE_THROWS_AS(engine::multiply({x.data(), 1, 96}, weights, {out.data(), 1, 16}, serial), kvc::Error);
  REQUIRE_THROWS_AS(engine::multiply({x.data(), 1, 64}, weights, {out.data(), 1, 15}, serial), kvc::Error);
  REQUIRE_THROWS_AS(engine::multiply({x.data(), 2, 64}, weights, {out.data(), 1, 16}, serial), kvc::Error);
}

TEST_CASE("rows that are no multiple of 32 inputs are refused") {
  const RandomTensor random(TensorType::f32, 40, 16, 6);
  REQUIRE_THROWS_AS(engine::WeightMatrix(random.tensor), kvc::Error);
}
