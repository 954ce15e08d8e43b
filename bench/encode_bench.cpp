// Storing rows: what appending and sealing cost per element, from floats to bytes, on one core.
//   encode/<format>/<keys|values>/<isa>/d:<head_dim>
// Counters: elements_per_second (floats in), bytes_per_second (floats in and bytes out).
#include <benchmark/benchmark.h>

#include <cstddef>
#include <string>
#include <vector>

#include "kvc/codec/make.hpp"
#include "kvc/kvc.hpp"
#include "support/sequence.hpp"

namespace {

/// A block's worth of rows into the same block, as a prompt's rows are: sources from L2, the block in L1 or L2.
void encode(benchmark::State& state, const kvc::Format& format, kvc::Role role, kvc::Isa isa, std::size_t dim) {
  const kvc::ScopedIsa scoped(isa);
  constexpr std::size_t Rows = 256;
  const auto codec = kvc::make_codec(format, role, dim);
  const std::vector<float> rows = bench::normal_floats(Rows * dim, 1);
  std::vector<std::byte> memory(codec->block_bytes(Rows) + 64);
  std::byte* block = memory.data() + (64 - reinterpret_cast<std::uintptr_t>(memory.data()) % 64) % 64;
  for (auto _ : state) {
    codec->encode({rows.data(), Rows, dim}, block, Rows, 0);
    benchmark::DoNotOptimize(block);
    benchmark::ClobberMemory();
  }
  const double elements = static_cast<double>(state.iterations()) * Rows * static_cast<double>(dim);
  state.counters["elements_per_second"] = benchmark::Counter(elements, benchmark::Counter::kIsRate);
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) *
                          static_cast<std::int64_t>(rows.size() * sizeof(float) + codec->block_bytes(Rows)));
}

}  // namespace

int main(int count, char** words) {
  const auto quantized = [](unsigned bits, kvc::Axis axis) { return kvc::GroupQuant{.bits = bits, .axis = axis}; };
  std::vector<std::pair<std::string, kvc::Format>> formats = {{"f32", kvc::Dense{kvc::Scalar::f32}},
                                                              {"f16", kvc::Dense{kvc::Scalar::f16}},
                                                              {"bf16", kvc::Dense{kvc::Scalar::bf16}}};
  for (const unsigned bits : {8u, 4u, 3u, 2u}) {
    formats.emplace_back("q" + std::to_string(bits) + "_channel", quantized(bits, kvc::Axis::channel));
    formats.emplace_back("q" + std::to_string(bits) + "_token", quantized(bits, kvc::Axis::token));
  }
  for (const auto& [name, format] : formats)
    for (const kvc::Role role : {kvc::Role::key, kvc::Role::value})
      for (const kvc::Isa isa : kvc::available_isas())
        benchmark::RegisterBenchmark(
            ("encode/" + name + (role == kvc::Role::key ? "/keys/" : "/values/") + kvc::to_string(isa) + "/d:128")
                .c_str(),
            [=, format = format](benchmark::State& state) { encode(state, format, role, isa, 128); })
            ->Unit(benchmark::kMicrosecond);
  benchmark::Initialize(&count, words);
  if (benchmark::ReportUnrecognizedArguments(count, words)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
