// What a product in integers reads, and the blocks it is cut into, several of which are multiplied by one call. Re-included, no
// guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// The block's parts, what is asked, and how to quantize.
struct IntegerSource {
  const PackedLayout& layout;
  const std::uint32_t* codes;
  const unsigned char *scales, *minima;
  const Area& area;
  const Coefficients& coefficients;
  PartKind kind;
  const IntegerFunctions& functions;

  std::size_t parts() const { return kind == PartKind::two ? 2 : 1; }
  float centre() const { return static_cast<float>((1u << layout.bits) - 1) * 0.5f; }
  /// The centre of what is multiplied.
  float operand_centre() const { return centre() - (layout.bits == 8 ? CodeOffset : 0.0f); }
};

/// Collects blocks of as many rows and the same stretches, and multiplies several at a time. finish() multiplies the last ones.
class IntegerBatch {
 public:
  static constexpr std::size_t MaxBlocks = 8;

  /// `like` is a job without blocks. `next` is where to prefetch, or null. It moves through the block that is needed next from
  /// front to back as this one is read, in whatever order: the prefetching hardware follows one sequence of lines, not three
  /// that take turns.
  IntegerBatch(const IntegerSource& source, PartKind kind, std::size_t rows, IntegerJob like,
               const unsigned char*& next)
      : source_(source), kind_(kind), job_(like), next_(next) {
    const PackedLayout& layout = source.layout;
    const std::size_t size = scalar_bytes(layout.metadata);
    job_.blocks = blocks_;
    job_.rows = rows;
    job_.scaled = layout.along == GroupsAlong::depth;
    job_.metadata = layout.metadata;
    job_.metadata_stride = layout.metadata_stride() * size;
    tile_dwords_ = layout.dword_rows() * TileLanes;
    first_scale_ = job_.stretches[0].metadata_row * job_.metadata_stride;
    for (std::size_t s = 0; s < job_.stretch_count; ++s)
      lines_ += divide_up(job_.stretches[s].count, layout.planes()) * layout.unit_rows() * IntegerTiles;
    if (job_.scaled) lines_ += job_.stretch_count * 2 * IntegerTiles * TileLanes * size / LineBytes;
  }
  ~IntegerBatch() { KVC_ASSERT(count_ == 0); }
  IntegerBatch(const IntegerBatch&) = delete;
  IntegerBatch& operator=(const IntegerBatch&) = delete;

  /// A pair of tiles from number `tile` on (or one, taken twice), of which `width` lanes exist. Results are of the whole row.
  void add(std::size_t tile, std::size_t width, const std::uint32_t* coefficients, const float* shift, float* results) {
    IntegerBlock& block = blocks_[count_];
    for (std::size_t t = 0; t < IntegerTiles; ++t) {
      const std::size_t number = tile + (t * TileLanes < width ? t : 0);
      block.codes[t] = source_.codes + number * tile_dwords_;
      const std::size_t first = first_scale_ + number * TileLanes * scalar_bytes(job_.metadata);
      block.scales[t] = source_.scales + first;
      block.minima[t] = source_.minima + first;
    }
    block.coefficients = coefficients;
    block.shift = shift;
    block.results = results;
    if (next_) {
      if (count_ == 0) job_.next = next_;
      next_ += lines_ * LineBytes;
    }
    ++count_;
    if (width < Lanes)
      multiply_partly(width);
    else if (count_ == MaxBlocks)
      finish();
  }

  /// Multiplies the blocks that were added since the last time.
  void finish() {
    job_.block_count = count_;
    if (count_ > 0) source_.functions.of[static_cast<int>(kind_)][job_.rows](job_);
    count_ = 0;
  }

 private:
  static constexpr std::size_t Lanes = IntegerTiles * TileLanes;

  /// Multiplies the last block through a buffer: functions know whole tiles only.
  void multiply_partly(std::size_t width) {
    const IntegerBlock last = blocks_[--count_];
    finish();
    alignas(64) float buffer[MaxBlockRows * Lanes];
    const std::size_t stride = job_.result_stride;
    for (std::size_t r = 0; r < job_.rows && job_.add; ++r)
      for (std::size_t i = 0; i < width; ++i) buffer[r * Lanes + i] = last.results[r * stride + i];
    blocks_[count_++] = last;
    blocks_[0].results = buffer;
    job_.result_stride = Lanes;
    finish();
    job_.result_stride = stride;
    for (std::size_t r = 0; r < job_.rows; ++r)
      for (std::size_t i = 0; i < width; ++i) last.results[r * stride + i] = buffer[r * Lanes + i];
  }

  const IntegerSource& source_;
  PartKind kind_;
  IntegerJob job_;
  const unsigned char*& next_;
  std::size_t count_ = 0, tile_dwords_ = 0, first_scale_ = 0, lines_ = 0;
  IntegerBlock blocks_[MaxBlocks];
};

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
