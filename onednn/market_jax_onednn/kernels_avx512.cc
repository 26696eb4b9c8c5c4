// The loops of kernels.h for CPUs with avx512f,avx512bw,avx512vl,avx512dq,fma,bmi2,f16c.

#include <cstdint>

#include "kernels.h"

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,bmi2,f16c")
#pragma GCC optimize("O3")

namespace market_jax {
namespace avx512 {
namespace {
constexpr char NAME[] = "avx512";
constexpr int kBytes = 64, kRegisters = 32;
#include "kernels_body.h"
}  // namespace
const Kernels& Table() { return kTable; }
}  // namespace avx512
}  // namespace market_jax
