// oneDNN's primitives, made once for each geometry and kept, each computed by the calling thread.

#ifndef MARKET_JAX_PLANS_H_
#define MARKET_JAX_PLANS_H_

#include <array>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "kernels.h"
#include "oneapi/dnnl/dnnl.hpp"

namespace market_jax {

// A convolution of x [N, H, W, C] with w [h, w, C / groups, K] to y [N, rows, columns, K].
struct Geometry {
  int64_t images, height, width, channels, rows, columns, outputs;
  int64_t window[2], groups, strides[2], before[2], after[2], dilation[2];

  int64_t weights() const { return window[0] * window[1] * (channels / groups) * outputs; }
  bool pointwise() const;
  bool depthwise() const;  // one that kernels.h has
};

// What follows a product of a forward pass: y = activation(y + bias + residual).
struct Behind {
  const float* bias = nullptr;
  const void* residual = nullptr;  // laid out as y
  int64_t kind = Activation::kNone;
  float slope = 0;

  int64_t key() const { return kind | (bias ? 8 : 0) | (residual ? 16 : 0); }
};

// Memory of the calling thread, reused from call to call.
class Workspace {
 public:
  enum Slot {
    kInput, kOutput, kGradient, kScratch, kWeights, kPart, kSums, kParts, kWide, kFiltered, kSlots
  };
  // The slot's memory, not cleared; it stays until the same slot is asked for again.
  static void* Get(Slot slot, size_t bytes);
  static float* Floats(Slot slot, int64_t count) {
    return static_cast<float*>(Get(slot, count * sizeof(float)));
  }
};

enum class Product { kConvolve, kInputGradient, kWeightGradient };

// One of a convolution's three products. Weights' gradients are float32.
class Convolution {
 public:
  // The plan for a geometry, from a table.
  static std::shared_ptr<const Convolution> Find(Product product, Type type, const Geometry& g,
                                                 const Behind& behind = {});
  // Bytes of the weights as oneDNN has them.
  size_t weights_size() const { return w_.get_size(); }
  // Whether those are the weights as XLA has them.
  bool plain() const { return w_ == user_w_; }
  // Weights from XLA's layout into oneDNN's, or, of a weight gradient, back.
  void Reorder(const void* from, void* to) const;
  // The same for weights that are laid out as another plan wants them.
  void Reorder(const Convolution& other, const void* from, void* to) const;
  bool SameLayout(const Convolution& other) const { return w_ == other.w_; }
  // The product; w is in oneDNN's layout.
  void Run(void* x, void* w, void* y, const Behind& behind = {}) const;

 private:
  Product product_;
  dnnl::primitive primitive_;
  dnnl::memory::desc x_, w_, y_, user_w_, bias_, scratch_;
  dnnl::reorder reorder_;
};

// A matrix that may be transposed or a part of a wider one.
struct Matrix {
  const void* data;
  int64_t row, column;  // distances in numbers
};
// c [m, n] = a [m, k] b [k, n], and what follows
void Multiply(Type type, int64_t m, int64_t k, int64_t n, Matrix a, Matrix b, Matrix c,
              const Behind& behind = {});
// c += a b, c float32
void MultiplyAndAdd(Type type, int64_t m, int64_t k, int64_t n, Matrix a, Matrix b, Matrix c);

}  // namespace market_jax

#endif  // MARKET_JAX_PLANS_H_
