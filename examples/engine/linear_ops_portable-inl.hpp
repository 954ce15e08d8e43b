// 16 floats in an array, for processors without the other targets. No include guard, no #include.
namespace engine::ENGINE_TARGET {

constexpr std::size_t RowsPerBlock = 2, PanelsPerBlock = 1, FewRows = 2;

struct Vector {
  float at[16];
};
struct Words {
  std::uint32_t at[16];
};

template <class Each>
ENGINE_INLINE Vector make_vector(Each each) {
  Vector result;
  for (std::size_t i = 0; i < 16; ++i) result.at[i] = each(i);
  return result;
}

ENGINE_INLINE Vector zero() {
  return Vector{};
}
ENGINE_INLINE Vector broadcast(float value) {
  return make_vector([&](std::size_t) { return value; });
}
ENGINE_INLINE Vector load(const float* from) {
  Vector result;
  std::memcpy(result.at, from, sizeof result.at);
  return result;
}
ENGINE_INLINE void store(float* to, const Vector& x) {
  std::memcpy(to, x.at, sizeof x.at);
}
ENGINE_INLINE Vector add(const Vector& x, const Vector& y) {
  return make_vector([&](std::size_t i) { return x.at[i] + y.at[i]; });
}
ENGINE_INLINE Vector mul(const Vector& x, const Vector& y) {
  return make_vector([&](std::size_t i) { return x.at[i] * y.at[i]; });
}
ENGINE_INLINE Vector div(const Vector& x, const Vector& y) {
  return make_vector([&](std::size_t i) { return x.at[i] / y.at[i]; });
}
ENGINE_INLINE Vector max(const Vector& x, const Vector& y) {
  return make_vector([&](std::size_t i) { return x.at[i] > y.at[i] ? x.at[i] : y.at[i]; });
}
ENGINE_INLINE Vector min(const Vector& x, const Vector& y) {
  return make_vector([&](std::size_t i) { return x.at[i] < y.at[i] ? x.at[i] : y.at[i]; });
}
ENGINE_INLINE Vector fma(const Vector& x, const Vector& y, const Vector& z) {
  return make_vector([&](std::size_t i) { return x.at[i] * y.at[i] + z.at[i]; });
}
ENGINE_INLINE Vector round(const Vector& x) {
  return make_vector([&](std::size_t i) { return std::nearbyint(x.at[i]); });
}
ENGINE_INLINE Vector scale_by_power(const Vector& x, const Vector& n) {
  return make_vector([&](std::size_t i) { return std::ldexp(x.at[i], static_cast<int>(n.at[i])); });
}

ENGINE_INLINE Words load_words(const std::byte* from) {
  Words result;
  std::memcpy(result.at, from, sizeof result.at);
  return result;
}
ENGINE_INLINE Words next_nibbles(Words words) {
  for (std::uint32_t& word : words.at) word >>= 4;
  return words;
}
ENGINE_INLINE Vector lowest_nibbles(const Words& words) {
  return make_vector([&](std::size_t i) { return static_cast<float>(words.at[i] & 15u); });
}
ENGINE_INLINE Vector load_bytes(const std::byte* from) {
  return make_vector([&](std::size_t i) { return static_cast<float>(static_cast<std::int8_t>(from[i])); });
}
ENGINE_INLINE Vector load_halves(const std::byte* from) {
  return make_vector([&](std::size_t i) {
    std::uint16_t bits;
    std::memcpy(&bits, from + 2 * i, sizeof bits);
    return kvc::from_half(bits);
  });
}

}  // namespace engine::ENGINE_TARGET
