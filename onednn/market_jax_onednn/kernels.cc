#include "kernels.h"

#include <stdexcept>

namespace market_jax {
namespace avx512 {
const Kernels& Table();
}
namespace avx2 {
const Kernels& Table();
}

const Kernels& BestKernels() {
  static const Kernels* best = [] {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
      return &avx512::Table();
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::Table();
    throw std::runtime_error("this CPU has no AVX2");
  }();
  return *best;
}

}  // namespace market_jax
