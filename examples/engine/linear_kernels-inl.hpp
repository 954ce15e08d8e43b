// The loops of a linear layer, written once and re-included per target: no include guard, no #include.
//
// A panel is 16 outputs by all inputs, cut into blocks of 32 inputs. Inside a block inputs run slowest, so that a
// vector is one input of 16 outputs: products need no sum across a vector, and an activation is broadcast.
//
//   nibble  | 16 f16 scales | 16 f16 minima | 4 x 16 words: word o of group g is inputs 8g .. 8g+7 of output o |
//   byte    | 16 f16 scales | 32 x 16 int8 |
//   half    | 32 x 16 f16 |            single  | 32 x 16 f32 |
namespace engine::ENGINE_TARGET {

/// Each block reads its codes in the order of the inputs; apply() turns a sum of code * activation into one of
/// weight * activation, value() a code into its weight.
struct NibbleBlock {
  static constexpr PanelFormat Format = PanelFormat::nibble;
  const std::byte* data;
  Vector scale, minimum;
  Words words;

  ENGINE_INLINE explicit NibbleBlock(const std::byte* block)
      : data(block + 64), scale(load_halves(block)), minimum(load_halves(block + 32)), words(load_words(data)) {}
  ENGINE_INLINE Vector next_code(std::size_t input) {
    words = input % 8 == 0 ? load_words(data + input / 8 * 64) : next_nibbles(words);
    return lowest_nibbles(words);
  }
  ENGINE_INLINE Vector value(Vector code) const { return fma(code, scale, minimum); }
  ENGINE_INLINE Vector apply(Vector sum, float inputs_sum, Vector total) const {
    return fma(minimum, broadcast(inputs_sum), fma(sum, scale, total));
  }
};

struct ByteBlock {
  static constexpr PanelFormat Format = PanelFormat::byte;
  const std::byte* data;
  Vector scale;

  ENGINE_INLINE explicit ByteBlock(const std::byte* block) : data(block + 32), scale(load_halves(block)) {}
  ENGINE_INLINE Vector next_code(std::size_t input) const { return load_bytes(data + input * 16); }
  ENGINE_INLINE Vector value(Vector code) const { return mul(code, scale); }
  ENGINE_INLINE Vector apply(Vector sum, float, Vector total) const { return fma(sum, scale, total); }
};

struct HalfBlock {
  static constexpr PanelFormat Format = PanelFormat::half;
  const std::byte* data;

  ENGINE_INLINE explicit HalfBlock(const std::byte* block) : data(block) {}
  ENGINE_INLINE Vector next_code(std::size_t input) const { return load_halves(data + input * 32); }
  ENGINE_INLINE Vector value(Vector code) const { return code; }
  ENGINE_INLINE Vector apply(Vector sum, float, Vector total) const { return add(sum, total); }
};

struct SingleBlock {
  static constexpr PanelFormat Format = PanelFormat::single;
  const float* data;

  ENGINE_INLINE explicit SingleBlock(const std::byte* block) : data(reinterpret_cast<const float*>(block)) {}
  ENGINE_INLINE Vector next_code(std::size_t input) const { return load(data + input * 16); }
  ENGINE_INLINE Vector value(Vector code) const { return code; }
  ENGINE_INLINE Vector apply(Vector sum, float, Vector total) const { return add(sum, total); }
};

inline void store_outputs(float* to, Vector values, std::size_t outputs) {
  if (outputs >= PanelOutputs) {
    store(to, values);
    return;
  }
  float all[PanelOutputs];
  store(all, values);
  for (std::size_t i = 0; i < outputs; ++i) to[i] = all[i];
}

/// `Rows` rows by one panel. Sums run over codes inside a block, so that scale and minimum cost two operations per
/// block and row. One row keeps two sums, because a single chain would wait for its own result.
template <class Block, std::size_t Rows>
void multiply_panel_rows(const std::byte* panel, std::size_t blocks, const KernelRows& rows, const float* block_sums,
                         std::size_t outputs) {
  constexpr std::size_t Chains = Rows < 4 ? 2 : 1;
  Vector totals[Rows];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < Rows; ++r) totals[r] = zero();
  for (std::size_t b = 0; b < blocks; ++b) {
    Block block(panel + b * block_bytes(Block::Format));
    const float* x = rows.x + b * BlockInputs;
    Vector sums[Rows][Chains];
#pragma GCC unroll 16
    for (std::size_t r = 0; r < Rows * Chains; ++r) sums[r / Chains][r % Chains] = zero();
    for (std::size_t group = 0; group < BlockInputs; group += 8) {
#pragma GCC unroll 8
      for (std::size_t i = 0; i < 8; ++i) {
        const Vector code = block.next_code(group + i);
#pragma GCC unroll 8
        for (std::size_t r = 0; r < Rows; ++r)
          sums[r][i % Chains] = fma(code, broadcast(x[r * rows.x_stride + group + i]), sums[r][i % Chains]);
      }
    }
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
      const Vector sum = Chains == 2 ? add(sums[r][0], sums[r][Chains - 1]) : sums[r][0];
      totals[r] = block.apply(sum, block_sums[r * blocks + b], totals[r]);
    }
  }
  for (std::size_t r = 0; r < Rows; ++r) store_outputs(rows.out + r * rows.out_stride, totals[r], outputs);
}

ENGINE_INLINE void advance(KernelRows& rows, std::size_t count) {
  rows.x += count * rows.x_stride;
  rows.out += count * rows.out_stride;
  rows.count -= count;
}

/// As many rows at a time as possible, at most `Rows`; the panel stays in the first-level cache in between.
template <class Block, std::size_t Rows = FewRows>
void multiply_panel_as(const std::byte* panel, std::size_t blocks, KernelRows rows, const float* block_sums,
                       std::size_t outputs) {
  for (; rows.count >= Rows; block_sums += Rows * blocks) {
    multiply_panel_rows<Block, Rows>(panel, blocks, rows, block_sums, outputs);
    advance(rows, Rows);
  }
  if constexpr (Rows > 1)
    if (rows.count > 0) multiply_panel_as<Block, Rows - 1>(panel, blocks, rows, block_sums, outputs);
}

inline void multiply_panel(PanelFormat format, const std::byte* panel, std::size_t blocks, const KernelRows& rows,
                           const float* block_sums, std::size_t outputs) {
  switch (format) {
    case PanelFormat::nibble:
      return multiply_panel_as<NibbleBlock>(panel, blocks, rows, block_sums, outputs);
    case PanelFormat::byte:
      return multiply_panel_as<ByteBlock>(panel, blocks, rows, block_sums, outputs);
    case PanelFormat::half:
      return multiply_panel_as<HalfBlock>(panel, blocks, rows, block_sums, outputs);
    case PanelFormat::single:
      return multiply_panel_as<SingleBlock>(panel, blocks, rows, block_sums, outputs);
  }
}

template <class Block>
void unpack_panel_as(const std::byte* panel, std::size_t blocks, float* out) {
  for (std::size_t b = 0; b < blocks; ++b) {
    Block block(panel + b * block_bytes(Block::Format));
    for (std::size_t group = 0; group < BlockInputs; group += 8) {
#pragma GCC unroll 8
      for (std::size_t i = 0; i < 8; ++i) {
        store(out, block.value(block.next_code(group + i)));
        out += PanelOutputs;
      }
    }
  }
}

inline void unpack_panel(PanelFormat format, const std::byte* panel, std::size_t blocks, float* out) {
  switch (format) {
    case PanelFormat::nibble:
      return unpack_panel_as<NibbleBlock>(panel, blocks, out);
    case PanelFormat::byte:
      return unpack_panel_as<ByteBlock>(panel, blocks, out);
    case PanelFormat::half:
      return unpack_panel_as<HalfBlock>(panel, blocks, out);
    case PanelFormat::single:
      return unpack_panel_as<SingleBlock>(panel, blocks, out);
  }
}

/// `Rows` rows by `Panels` panels of unpacked weights, all sums in registers: per input one load per panel and one
/// broadcast per row for Rows * Panels multiplications.
template <std::size_t Rows, std::size_t Panels>
void multiply_register_block(const float* panels, std::size_t inputs, const KernelRows& rows, std::size_t outputs) {
  const std::size_t panel_stride = inputs * PanelOutputs;
  Vector sums[Rows][Panels];
#pragma GCC unroll 32
  for (std::size_t i = 0; i < Rows * Panels; ++i) sums[i / Panels][i % Panels] = zero();
  const float* x = rows.x;
  for (std::size_t input = 0; input < inputs; ++input) {
    Vector weights[Panels];
#pragma GCC unroll 4
    for (std::size_t p = 0; p < Panels; ++p) weights[p] = load(panels + p * panel_stride + input * PanelOutputs);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < Rows; ++r) {
      const Vector activation = broadcast(x[r * rows.x_stride + input]);
#pragma GCC unroll 4
      for (std::size_t p = 0; p < Panels; ++p) sums[r][p] = fma(weights[p], activation, sums[r][p]);
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (std::size_t p = 0; p < Panels; ++p)
      store_outputs(rows.out + r * rows.out_stride + p * PanelOutputs, sums[r][p], outputs - p * PanelOutputs);
}

template <std::size_t Panels, std::size_t Rows = RowsPerBlock>
void multiply_row_blocks(const float* panels, std::size_t inputs, KernelRows rows, std::size_t outputs) {
  for (; rows.count >= Rows; advance(rows, Rows)) multiply_register_block<Rows, Panels>(panels, inputs, rows, outputs);
  if constexpr (Rows > 1)
    if (rows.count > 0) multiply_row_blocks<Panels, Rows - 1>(panels, inputs, rows, outputs);
}

inline void multiply_unpacked(const float* panels, std::size_t inputs, const KernelRows& rows, std::size_t outputs) {
  std::size_t done = 0;
  while (done < outputs) {
    KernelRows part = rows;
    part.out += done;
    const float* first = panels + done * inputs;
    if (outputs - done > (PanelsPerBlock - 1) * PanelOutputs) {
      multiply_row_blocks<PanelsPerBlock>(first, inputs, part, outputs - done);
      done += PanelsPerBlock * PanelOutputs;
    } else {
      multiply_row_blocks<1>(first, inputs, part, outputs - done);
      done += PanelOutputs;
    }
  }
}

/// exp(x) to 2 units in the last place for x in [-87, 88]; outside, the value at the nearer end.
ENGINE_INLINE Vector exponential(Vector x) {
  x = min(max(x, broadcast(-87.0f)), broadcast(88.0f));
  const Vector n = round(mul(x, broadcast(1.44269504f)));
  Vector r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vector p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = add(fma(mul(r, r), p, r), broadcast(1.0f));
  return scale_by_power(p, n);
}

ENGINE_INLINE Vector swiglu_vector(Vector gate, Vector up) {
  const Vector denominator = add(broadcast(1.0f), exponential(mul(gate, broadcast(-1.0f))));
  return mul(div(gate, denominator), up);
}

inline void swiglu(float* gate, const float* up, std::size_t count) {
  std::size_t i = 0;
  for (; i + 16 <= count; i += 16) store(gate + i, swiglu_vector(load(gate + i), load(up + i)));
  if (i == count) return;
  float gates[16] = {}, ups[16] = {};
  for (std::size_t j = 0; i + j < count; ++j) gates[j] = gate[i + j], ups[j] = up[i + j];
  store(gates, swiglu_vector(load(gates), load(ups)));
  for (std::size_t j = 0; i + j < count; ++j) gate[i + j] = gates[j];
}

constexpr LinearKernels Kernels = {ENGINE_TARGET_NAME, FewRows, &multiply_panel, &unpack_panel,
                                   &multiply_unpacked, &swiglu};

}  // namespace engine::ENGINE_TARGET
