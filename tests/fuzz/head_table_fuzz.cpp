// Head tables: what can be read must be written and read again as the same.
#include <string>

#include "fuzz/fuzz_input.hpp"
#include "kvc/error.hpp"
#include "kvc/policy/head_table.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const kvc::HeadTable table = kvc::HeadTable::parse(fuzz::text_of(data, size));
    if (!(kvc::HeadTable::parse(table.to_string()) == table))
      fuzz::fail("a table changed when it was written and read");
    if (table.count() > table.layers() * table.kv_heads()) fuzz::fail("more heads retrieve than there are");
    for (std::size_t layer = 0; layer < table.layers(); ++layer)
      table.retrieves({static_cast<std::uint32_t>(layer), static_cast<std::uint32_t>(table.kv_heads() - 1)});
    fuzz::note_understood();
  } catch (const kvc::Error&) {
  }
  return 0;
}
