// Loops over activations in memory: what stands between two convolutions, and depthwise
// convolutions. They are compiled for several instruction sets; `Kernels` is the table of one.
//
// Maps are dense, [rows, channels] or [N, H, W, channels], float32 or bfloat16; everything is
// computed in float32, and vectors of one number for each channel are float32. Sums are added to
// what the given memory holds.

#ifndef MARKET_JAX_KERNELS_H_
#define MARKET_JAX_KERNELS_H_

#include <cstdint>

namespace market_jax {

enum class Type : int64_t { kFloat32 = 0, kBfloat16 = 1 };

// What is applied to a channel: activation(scale * x + shift).
struct Activation {
  enum Kind : int64_t { kNone = 0, kRelu = 1, kRelu6 = 2, kLeakyRelu = 3 };
  const float* scale = nullptr;  // with shift, or neither: then nothing is applied
  const float* shift = nullptr;
  int64_t kind = kNone;
  float slope = 0;  // of kLeakyRelu, where its input is negative
};

// A depthwise convolution of [N, height, width, channels] to [N, rows, columns, channels]; a call
// does a block of channels, and is given pointers to the first of them.
struct Depthwise {
  int64_t height, width, channels, block, rows, columns;
  int64_t window[2], strides[2], before[2];
};

struct Kernels {
  // z = activation(x); z may be x
  void (*activate)(Type, int64_t rows, int64_t channels, const void* x, const Activation&, void* z);
  // sums [2, channels]: of y and of its squares
  void (*moments)(Type, int64_t rows, int64_t channels, const void* y, float* sums);
  // dy = gy + gsums[0] + 2 * gsums[1] * y, and its sum where `bias` is given; no gsums: dy = gy
  void (*output_gradient)(Type, int64_t rows, int64_t channels, const void* gy, const void* y,
                          const float* gsums, void* dy, float* bias);
  // gx from gz, both of `activate`; sums [2, channels]: the gradients of scale and shift
  void (*input_gradient)(Type, int64_t rows, int64_t channels, const void* gz, const void* x,
                         const Activation&, void* gx, float* sums);
  // y = activation(y + bias + residual), each where it is given; kind and slope alone are read
  void (*epilogue)(Type, int64_t rows, int64_t channels, void* y, const float* bias,
                   const void* residual, const Activation&);
  // z = activation(scale * x + shift + residual)
  void (*finish)(Type, int64_t rows, int64_t channels, const void* x, const void* residual,
                 const Activation&, void* z);
  // its gradients: gx, and that of the residual where it is wanted; sums as for input_gradient
  void (*finish_gradient)(Type, int64_t rows, int64_t channels, const void* gz, const void* z,
                          const void* x, const Activation&, void* gx, void* gresidual, float* sums);
  // rows [first, last) of one image's y, and its epilogue; `sums` as for moments, where given
  void (*depthwise)(Type, const Depthwise&, int64_t first, int64_t last, const void* x,
                    const Activation& before, const float* w, const float* bias,
                    const void* residual, const Activation& after, void* y, float* sums,
                    float* scratch);
  // rows [first, last) of one image's gx, where it is wanted, and what they add to the sums, to
  // gw and to the sum of dy (which only the first row's owner adds)
  void (*depthwise_gradient)(Type, const Depthwise&, int64_t first, int64_t last, const void* x,
                             const Activation& before, const float* w, const void* y,
                             const void* gy, const float* gsums, void* gx, float* sums, float* gw,
                             float* scratch);
  // floats of scratch that the two above need for so many rows
  int64_t (*depthwise_scratch)(const Depthwise&, int64_t rows);
  const char* name;
};

// The table for this CPU.
const Kernels& BestKernels();

}  // namespace market_jax

#endif  // MARKET_JAX_KERNELS_H_
