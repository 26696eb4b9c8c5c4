// A convolution with what stands before and after it, and its gradients.
//
//   z = activation(scale * x + shift)          where scale and shift are given
//   y = activation(z * w + bias + residual)    each where it is given
//   sums = of y, and of its squares, over all pixels
//
// A batch is cut into pieces of which everything between x and y fits into a core's cache, so that
// x is read once and y written once; the gradient reads x, y and the gradient by y, and writes the
// gradient by x. Pieces are summed in a fixed order: results do not depend on timing.
//
// Activations are dense [N, H, W, C] and weights [h, w, C / groups, K]. What is not given has no
// elements.

#ifndef MARKET_JAX_CALL_H_
#define MARKET_JAX_CALL_H_

#include <algorithm>
#include <cstring>
#include <memory>

#include "kernels.h"
#include "parallel.h"
#include "plans.h"

namespace market_jax {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;

constexpr int64_t kCache = 384 << 10;  // bytes of a piece, of a core's second cache

template <typename T>
T* Data(Buffer buffer) {
  return buffer.element_count() ? static_cast<T*>(buffer.untyped_data()) : nullptr;
}

inline void* Offset(const void* data, int64_t count, Type type) {
  if (!data) return nullptr;
  const int64_t size = type == Type::kFloat32 ? 4 : 2;
  return static_cast<char*>(const_cast<void*>(data)) + count * size;
}

inline int64_t Size(Type type) { return type == Type::kFloat32 ? 4 : 2; }
inline int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The pieces [0, count) in parts, one after the other within each: body(part, first, last).
template <typename Body>
void ForParts(ffi::ThreadPool& pool, int64_t count, int64_t parts, const Body& body) {
  ParallelFor(pool, parts, [&](int64_t part) {
    body(part, count * part / parts, count * (part + 1) / parts);
  });
}

// Numbers that each part sums by itself, and their total.
class Sums {
 public:
  Sums(Workspace::Slot slot, int64_t parts, int64_t count)
      : parts_(parts), count_(count), data_(Workspace::Floats(slot, parts * count + 1)) {
    std::memset(data_, 0, parts * count * sizeof(float));
  }
  float* Part(int64_t part) { return data_ + part * count_; }
  const float* Total(ffi::ThreadPool& pool) {
    constexpr int64_t kRun = 1 << 15;
    ParallelFor(pool, Ceil(count_, kRun), [&](int64_t run) {
      const int64_t last = std::min(count_, (run + 1) * kRun);
      for (int64_t part = 1; part < parts_; ++part) {
        const float* from = Part(part);
        for (int64_t i = run * kRun; i < last; ++i) data_[i] += from[i];
      }
    });
    return data_;
  }

 private:
  int64_t parts_, count_;
  float* data_;
};

struct Call {
  ffi::ThreadPool& pool;
  Type type;
  Geometry g;
  bool transposed;
  Activation before, after;
  const Kernels& kernels = BestKernels();

  int64_t threads() const { return std::max<int64_t>(pool.num_threads(), 1); }
  bool activates() const { return before.scale || before.kind != Activation::kNone; }
  int64_t inputs() const { return transposed ? g.outputs : g.channels; }
  int64_t outputs() const { return transposed ? g.channels : g.outputs; }
  int64_t in_pixels() const { return transposed ? g.rows * g.columns : g.height * g.width; }
  int64_t out_pixels() const { return transposed ? g.height * g.width : g.rows * g.columns; }
  int64_t parts(int64_t pieces) const { return std::min(pieces, 4 * threads()); }

  // Rows of a piece of a matrix product: many enough for the weights, few enough for the cache.
  int64_t matrix_rows() const {
    const int64_t fit = kCache / (Size(type) * (g.channels + g.outputs)) / 64 * 64;
    return std::clamp<int64_t>(fit, 192, 1024);
  }
  // Images of a piece of another convolution, a divisor of the batch.
  int64_t images() const {
    const int64_t pixels = in_pixels() * inputs() + out_pixels() * outputs();
    const int64_t fit = Ceil(std::max<int64_t>(kCache, 2 * Size(type) * g.weights()),
                             Size(type) * pixels);
    int64_t most = std::clamp<int64_t>(fit, 1, Ceil(g.images, threads()));
    while (g.images % most) --most;
    return most;
  }
};

// A piece of z: of x itself, where nothing is applied, or else in the workspace.
inline const void* Activated(const Call& call, const void* x, int64_t pixel, int64_t pixels) {
  const int64_t channels = call.inputs();
  const void* piece = Offset(x, pixel * channels, call.type);
  if (!call.activates()) return piece;
  void* z = Workspace::Get(Workspace::kInput, pixels * channels * Size(call.type) + 64);
  call.kernels.activate(call.type, pixels, channels, piece, call.before, z);
  return z;
}

// A depthwise convolution in pieces: strips of an image's rows, and in each blocks of channels.
struct Strips {
  Depthwise d;
  int64_t rows, strip, count;

  Strips(const Call& call, int64_t rows) : rows(rows) {
    const Geometry& g = call.g;
    constexpr int64_t kBlock = 64;
    d = {g.height, g.width, g.channels, std::min(kBlock, g.channels), g.rows, g.columns,
         {g.window[0], g.window[1]}, {g.strides[0], g.strides[1]}, {g.before[0], g.before[1]}};
    const int64_t line = call.kernels.depthwise_scratch(d, 16) / 16;
    const int64_t fit = std::max<int64_t>(kCache / 3 / (line * sizeof(float)), 4);
    const int64_t pieces = std::max(Ceil(rows, fit), Ceil(2 * call.threads(), g.images));
    strip = std::max<int64_t>(Ceil(rows, pieces), 1);
    count = Ceil(rows, strip);
  }
  // Calls body(piece of d, image, first row, last row, first channel) for a part of all pieces.
  template <typename Body>
  void Each(int64_t first, int64_t last, const Body& body) const {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t row = piece % count * strip;
      for (int64_t channel = 0; channel < d.channels; channel += d.block) {
        Depthwise own = d;
        own.block = std::min(d.block, d.channels - channel);
        body(own, piece / count, row, std::min(row + strip, rows), channel);
      }
    }
  }
};

inline Activation From(const Activation& a, int64_t channel) {
  if (!a.scale) return a;
  return {a.scale + channel, a.shift + channel, a.kind, a.slope};
}

struct ForwardBuffers {
  const void *x, *w;
  const float* bias;
  const void* residual;
  void* y;
  float* sums;
  int64_t packed;  // bytes of w, if it is as `PackingPlan` wants it, else 0
};

struct BlockBuffers {
  const void *x, *expand;
  const float *expand_bias, *filter, *filter_bias;
  const void* project;
  const float* project_bias;
  const void* residual;
  void* y;
};

struct BackwardBuffers {
  const void *x, *w, *y, *gy;
  const float* gsums;
  void* gx;
  float *ginput, *gw, *gbias;  // ginput [2, inputs]: by scale and by shift
};

// The plan by which weights are packed once: that of one image.
std::shared_ptr<const Convolution> PackingPlan(Type type, Geometry g);

void RunForward(const Call& call, const ForwardBuffers& b);
// An inverted residual in inference: 1x1, depthwise, 1x1. The activation before is that of the
// first, the one after that of the second.
void RunBlock(const Call& call, int64_t narrow, const BlockBuffers& b, int64_t slim);
void RunBackward(const Call& call, const BackwardBuffers& b);

}  // namespace market_jax

#endif  // MARKET_JAX_CALL_H_
