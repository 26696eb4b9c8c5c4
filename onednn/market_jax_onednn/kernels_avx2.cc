// The loops of kernels.h for CPUs with avx2,fma,bmi2,f16c.

#include <cstdint>

#include "kernels.h"

#pragma GCC target("avx2,fma,bmi2,f16c")
#pragma GCC optimize("O3")

namespace market_jax {
namespace avx2 {
namespace {
constexpr char NAME[] = "avx2";
constexpr int kBytes = 32, kRegisters = 16;
#include "kernels_body.h"
}  // namespace
const Kernels& Table() { return kTable; }
}  // namespace avx2
}  // namespace market_jax
