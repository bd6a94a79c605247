// Operations on PrefixTree against the naive model; the input chooses them. Build with -DCAIRN_FUZZ=ON.
#include <cstdint>
#include <cstdlib>
#include <iostream>

#include "unit/prefix_tree_model.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::size_t at = 0;
  cairn::test::PrefixTreeTrial trial([&](std::uint32_t below) -> std::uint32_t {
    if (at == size || below == 0) return 0;
    return data[at++] % below;  // everything drawn here is small
  });
  try {
    for (int step = 0; step < 200 && at < size; ++step) trial.step();
  } catch (const std::logic_error& difference) {
    std::cerr << difference.what() << std::endl;
    std::abort();
  }
  return 0;
}
