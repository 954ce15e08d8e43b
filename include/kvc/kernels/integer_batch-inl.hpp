// What a product in integers reads, and the blocks it is cut into, several of which run together. Re-included, no guard.
namespace kvc::inline KVC_ABI::kernels::KVC_TARGET {

/// The block's parts, what is asked, and how to quantize.
struct IntegerSource {
  const PackedLayout& layout;
  const std::uint32_t* codes;
  const unsigned char *scales, *minima;
  const Window& window;
  const Coefficients& coefficients;
  PartKind kind;
  const IntegerFunctions& functions;
  /// Where to prefetch next, or null. It moves through the next block from front to back as this one is read, in whatever order:
  /// the prefetching hardware joins in on one run of lines, not on three that take turns.
  mutable const unsigned char* next;

  std::size_t parts() const { return kind == PartKind::two ? 2 : 1; }
  float centre() const { return static_cast<float>((1u << layout.bits) - 1) * 0.5f; }
  /// The centre of what is multiplied.
  float operand_centre() const { return centre() - (layout.bits == 8 ? CodeOffset : 0.0f); }
};

/// Collects blocks of as many rows and the same segments, and runs several at a time.
class IntegerBatch {
 public:
  static constexpr std::size_t MaxBlocks = 8;

  /// `like` is a run without blocks.
  IntegerBatch(const IntegerSource& source, PartKind kind, std::size_t rows, IntegerRun like, bool prefetches)
      : source_(source), kind_(kind), run_(like), prefetches_(prefetches && source.next) {
    const PackedLayout& layout = source.layout;
    const std::size_t size = scalar_bytes(layout.metadata);
    run_.blocks = blocks_;
    run_.rows = rows;
    run_.scaled = layout.along == GroupsAlong::p;
    run_.metadata = layout.metadata;
    run_.metadata_stride = layout.metadata_stride() * size;
    run_.next = nullptr;
    tile_dwords_ = layout.dword_rows() * TileLanes;
    first_scale_ = run_.segments[0].metadata_row * run_.metadata_stride;
    for (std::size_t s = 0; s < run_.segment_count; ++s)
      lines_ += divide_up(run_.segments[s].count, layout.planes()) * layout.unit_rows() * IntegerTiles;
    if (run_.scaled) lines_ += run_.segment_count * 2 * IntegerTiles * TileLanes * size / LineBytes;
  }
  ~IntegerBatch() { run(); }
  IntegerBatch(const IntegerBatch&) = delete;
  IntegerBatch& operator=(const IntegerBatch&) = delete;

  /// A pair of tiles from number `tile` on (or one, taken twice), of which `width` lanes exist. Results are of the whole row.
  void add(std::size_t tile, std::size_t width, const std::uint32_t* coefficients, const float* shift, float* results) {
    IntegerBlock& block = blocks_[count_];
    for (std::size_t t = 0; t < IntegerTiles; ++t) {
      const std::size_t number = tile + (t * TileLanes < width ? t : 0);
      block.codes[t] = source_.codes + number * tile_dwords_;
      const std::size_t first = first_scale_ + number * TileLanes * scalar_bytes(run_.metadata);
      block.scales[t] = source_.scales + first;
      block.minima[t] = source_.minima + first;
    }
    block.coefficients = coefficients;
    block.shift = shift;
    block.results = results;
    if (prefetches_) {
      if (count_ == 0) run_.next = source_.next;
      source_.next += lines_ * LineBytes;
    }
    ++count_;
    if (width < Lanes)
      run_partly(width);
    else if (count_ == MaxBlocks)
      run();
  }

 private:
  static constexpr std::size_t Lanes = IntegerTiles * TileLanes;

  void run() {
    run_.block_count = count_;
    if (count_ > 0) source_.functions.of[static_cast<int>(kind_)][run_.rows](run_);
    count_ = 0;
  }
  /// Runs the last block through a buffer: functions know whole tiles only.
  void run_partly(std::size_t width) {
    const IntegerBlock last = blocks_[--count_];
    run();
    alignas(64) float buffer[MaxBlockRows * Lanes];
    const std::size_t stride = run_.result_stride;
    for (std::size_t r = 0; r < run_.rows && run_.add; ++r)
      for (std::size_t i = 0; i < width; ++i) buffer[r * Lanes + i] = last.results[r * stride + i];
    blocks_[count_++] = last;
    blocks_[0].results = buffer;
    run_.result_stride = Lanes;
    run();
    run_.result_stride = stride;
    for (std::size_t r = 0; r < run_.rows; ++r)
      for (std::size_t i = 0; i < width; ++i) last.results[r * stride + i] = buffer[r * Lanes + i];
  }

  const IntegerSource& source_;
  PartKind kind_;
  IntegerRun run_;
  std::size_t count_ = 0, tile_dwords_ = 0, first_scale_ = 0, lines_ = 0;
  bool prefetches_;
  IntegerBlock blocks_[MaxBlocks];
};

}  // namespace kvc::inline KVC_ABI::kernels::KVC_TARGET
