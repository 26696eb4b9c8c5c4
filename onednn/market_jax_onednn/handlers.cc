// A convolution with what stands before and after it, and its gradients, as XLA FFI handlers.
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

#include <algorithm>
#include <cstring>
#include <functional>
#include <new>
#include <string>

#include "kernels.h"
#include "parallel.h"
#include "plans.h"

namespace market_jax {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Numbers = ffi::Span<const int64_t>;

constexpr int64_t kCache = 384 << 10;  // bytes of a piece, of a core's second cache

template <typename T>
T* Data(Buffer buffer) {
  return buffer.element_count() ? static_cast<T*>(buffer.untyped_data()) : nullptr;
}

void* Offset(const void* data, int64_t count, Type type) {
  if (!data) return nullptr;
  const int64_t size = type == Type::kFloat32 ? 4 : 2;
  return static_cast<char*>(const_cast<void*>(data)) + count * size;
}

int64_t Size(Type type) { return type == Type::kFloat32 ? 4 : 2; }
int64_t Ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// --- forward

struct ForwardBuffers {
  const void *x, *w;
  const float* bias;
  const void* residual;
  void* y;
  float* sums;
  bool packed;  // whether w is as `PackingPlan` wants it
};

// What oneDNN does behind a product, for a piece of y that begins at a number of it.
Behind After(const Call& call, const ForwardBuffers& b, int64_t at, int64_t column = 0) {
  return {b.bias ? b.bias + column : nullptr, Offset(b.residual, at, call.type), call.after.kind,
          call.after.slope};
}

void Moments(const Call& call, const ForwardBuffers& b, int64_t pixel, int64_t pixels,
             float* sums) {
  const int64_t channels = call.outputs();
  if (!b.sums) return;
  call.kernels.moments(call.type, pixels, channels, Offset(b.y, pixel * channels, call.type), sums);
}

// A piece of z: of x itself, where nothing is applied, or else in the workspace.
const void* Activated(const Call& call, const void* x, int64_t pixel, int64_t pixels) {
  const int64_t channels = call.inputs();
  const void* piece = Offset(x, pixel * channels, call.type);
  if (!call.activates()) return piece;
  void* z = Workspace::Get(Workspace::kInput, pixels * channels * Size(call.type) + 64);
  call.kernels.activate(call.type, pixels, channels, piece, call.before, z);
  return z;
}

void Keep(const Call& call, const ForwardBuffers& b, Sums& sums) {
  if (b.sums) std::memcpy(b.sums, sums.Total(call.pool), 2 * call.outputs() * sizeof(float));
}

void ForwardPointwise(const Call& call, const ForwardBuffers& b) {
  const int64_t c = call.g.channels, k = call.g.outputs, rows = call.g.images * call.in_pixels();
  // few rows: pieces of columns instead, so that every thread has some
  int64_t run = std::min(call.matrix_rows(), std::max<int64_t>(Ceil(rows, call.threads()), 64));
  const int64_t pieces = Ceil(rows, run);
  const int64_t splits = pieces < call.threads() ? std::min(call.threads(), Ceil(k, 64)) : 1;
  const int64_t width = Ceil(Ceil(k, splits), 16) * 16;
  const int64_t parts = call.parts(pieces);
  Sums sums(Workspace::kSums, parts, 2 * k);
  const auto multiply = [&](const void* z, int64_t row, int64_t count, int64_t column) {
    const int64_t columns = std::min(width, k - column);
    if (columns <= 0) return;
    Multiply(call.type, count, c, columns, {z, c, 1}, {Offset(b.w, column, call.type), k, 1},
             {Offset(b.y, row * k + column, call.type), k, 1},
             After(call, b, row * k + column, column));
  };
  if (splits > 1) {
    const void* z = Activated(call, b.x, 0, rows);
    ParallelFor(call.pool, splits, [&](int64_t i) { multiply(z, 0, rows, i * width); });
    Moments(call, b, 0, rows, sums.Part(0));
  } else {
    ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
      for (int64_t row = first * run; row < std::min(last * run, rows); row += run) {
        const int64_t count = std::min(run, rows - row);
        multiply(Activated(call, b.x, row, count), row, count, 0);
        Moments(call, b, row, count, sums.Part(part));
      }
    });
  }
  Keep(call, b, sums);
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

Activation From(const Activation& a, int64_t channel) {
  if (!a.scale) return a;
  return {a.scale + channel, a.shift + channel, a.kind, a.slope};
}

void ForwardDepthwise(const Call& call, const ForwardBuffers& b) {
  const Strips strips(call, call.g.rows);
  const Depthwise& d = strips.d;
  const int64_t pieces = call.g.images * strips.count, parts = call.parts(pieces);
  Sums sums(Workspace::kSums, parts, 2 * d.channels);
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    float* scratch =
        Workspace::Floats(Workspace::kInput, call.kernels.depthwise_scratch(d, strips.strip));
    strips.Each(first, last, [&](const Depthwise& own, int64_t image, int64_t row, int64_t end,
                                 int64_t channel) {
      const int64_t in = image * d.height * d.width * d.channels + channel;
      const int64_t out = image * d.rows * d.columns * d.channels + channel;
      call.kernels.depthwise(call.type, own, row, end, Offset(b.x, in, call.type),
                             From(call.before, channel), static_cast<const float*>(b.w) + channel,
                             b.bias ? b.bias + channel : nullptr,
                             Offset(b.residual, out, call.type), call.after,
                             Offset(b.y, out, call.type),
                             b.sums ? sums.Part(part) + channel : nullptr, scratch);
    });
  });
  Keep(call, b, sums);
}

// The plan by which weights are packed once: that of one image.
std::shared_ptr<const Convolution> PackingPlan(Type type, Geometry g) {
  g.images = 1;
  return Convolution::Find(Product::kConvolve, type, g);
}

// Weights as a plan wants them, in the calling thread's workspace where they have to be moved.
void* Weights(const Call& call, const Convolution& plan, const void* w, bool packed) {
  void* moved = const_cast<void*>(w);
  if (packed) {
    const auto packing = PackingPlan(call.type, call.g);
    if (plan.SameLayout(*packing)) return moved;
    moved = Workspace::Get(Workspace::kWeights, plan.weights_size());
    plan.Reorder(*packing, w, moved);
  } else if (!plan.plain()) {
    moved = Workspace::Get(Workspace::kWeights, plan.weights_size());
    plan.Reorder(w, moved);
  }
  return moved;
}

// Rows [first, last) of the output as a convolution of their own, and the input's row they begin at.
std::pair<Geometry, int64_t> RowsOf(const Geometry& g, int64_t first, int64_t last) {
  Geometry own = g;
  const int64_t reach = (g.window[0] - 1) * g.dilation[0] + 1;
  const int64_t from = first * g.strides[0] - g.before[0];
  const int64_t to = (last - 1) * g.strides[0] - g.before[0] + reach;
  const int64_t inside = std::max<int64_t>(from, 0), end = std::min(to, g.height);
  own.rows = last - first, own.height = end - inside;
  own.before[0] = inside - from, own.after[0] = std::max<int64_t>(to - g.height, 0);
  return {own, inside};
}

// Few images: strips of the output's rows, so that every thread has some.
void ForwardRows(const Call& call, const ForwardBuffers& b) {
  const Geometry& g = call.g;
  const int64_t strips = std::min(call.threads(), g.rows);
  Geometry first = RowsOf(g, 0, g.rows / strips).first;
  first.images = 1;
  const auto plan = Convolution::Find(Product::kConvolve, call.type, first, After(call, b, 0));
  void* w = Weights(call, *plan, b.w, b.packed);
  ParallelFor(call.pool, g.images * strips, [&](int64_t piece) {
    const int64_t image = piece / strips, strip = piece % strips;
    const int64_t row = g.rows * strip / strips;
    auto [own, from] = RowsOf(g, row, g.rows * (strip + 1) / strips);
    own.images = 1;
    const int64_t in = (image * g.height + from) * g.width * g.channels;
    const int64_t out = (image * g.rows + row) * g.columns * g.outputs;
    const auto mine = Convolution::Find(Product::kConvolve, call.type, own, After(call, b, out));
    void* moved = w;
    if (!mine->SameLayout(*plan)) {
      moved = Workspace::Get(Workspace::kPart, mine->weights_size());
      mine->Reorder(*plan, w, moved);
    }
    mine->Run(Offset(b.x, in, call.type), moved, Offset(b.y, out, call.type), After(call, b, out));
  });
}

void ForwardOther(const Call& call, const ForwardBuffers& b) {
  if (call.g.images < call.threads() && !call.transposed && !call.activates() && !b.sums) {
    return ForwardRows(call, b);
  }
  const int64_t images = call.images(), pieces = call.g.images / images;
  const int64_t in = images * call.in_pixels(), out = images * call.out_pixels();
  Geometry g = call.g;
  g.images = images;
  const bool behind = b.bias || b.residual || call.after.kind != Activation::kNone;
  const auto plan =
      call.transposed ? Convolution::Find(Product::kInputGradient, call.type, g)
                      : Convolution::Find(Product::kConvolve, call.type, g, After(call, b, 0));
  void* w = Weights(call, *plan, b.w, b.packed);
  const int64_t parts = call.parts(pieces);
  Sums sums(Workspace::kSums, parts, 2 * call.outputs());
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    for (int64_t piece = first; piece < last; ++piece) {
      void* z = const_cast<void*>(Activated(call, b.x, piece * in, in));
      const int64_t at = piece * out * call.outputs();
      void* y = Offset(b.y, at, call.type);
      if (call.transposed) {
        plan->Run(y, w, z);
        if (behind) {
          call.kernels.epilogue(call.type, out, call.outputs(), y, b.bias,
                                Offset(b.residual, at, call.type), call.after);
        }
      } else {
        plan->Run(z, w, y, After(call, b, at));
      }
      Moments(call, b, piece * out, out, sums.Part(part));
    }
  });
  Keep(call, b, sums);
}

// --- an inverted residual: 1x1, depthwise, 1x1, in inference

struct BlockBuffers {
  const void *x, *expand;
  const float *expand_bias, *filter, *filter_bias;
  const void* project;
  const float* project_bias;
  const void* residual;
  void* y;
};

// The filter, for rows of an image; rows are counted from the image's first, which `x` and `y` may
// not hold.
void Filter(const Call& call, const Depthwise& d, int64_t first, int64_t last, const void* x,
            const float* w, const float* bias, void* y, int64_t channels) {
  float* scratch =
      Workspace::Floats(Workspace::kInput, call.kernels.depthwise_scratch(d, last - first));
  for (int64_t channel = 0; channel < channels; channel += d.block) {
    Depthwise own = d;
    own.block = std::min(own.block, channels - channel);
    call.kernels.depthwise(call.type, own, first, last, Offset(x, channel, call.type), {},
                           w + channel, bias + channel, nullptr, call.after,
                           Offset(y, channel, call.type), nullptr, scratch);
  }
}

// Few images, of small maps: each thread has some of the wide map's channels.
void RunBlockByChannels(const Call& call, int64_t narrow, const BlockBuffers& b, int64_t slim) {
  const Geometry& g = call.g;
  const int64_t wide = g.channels, splits = std::min(call.threads(), Ceil(wide, 64));
  const int64_t width = Ceil(Ceil(wide, splits), 16) * 16;
  const int64_t pixels = g.images * g.height * g.width, results = g.images * g.rows * g.columns;
  Sums sums(Workspace::kParts, splits, results * slim);
  ParallelFor(call.pool, splits, [&](int64_t split) {
    const int64_t channel = split * width, own = std::min(width, wide - channel);
    if (own <= 0) return;
    float* widened = Workspace::Floats(Workspace::kWide, pixels * own + 16);
    float* filtered = Workspace::Floats(Workspace::kFiltered, results * own + 16);
    Multiply(call.type, pixels, narrow, own, {b.x, narrow, 1},
             {Offset(b.expand, channel, call.type), wide, 1}, {widened, own, 1},
             {b.expand_bias + channel, nullptr, call.before.kind, call.before.slope});
    Depthwise d = Strips(call, g.rows).d;
    d.channels = own;
    // the weights of a window's cells are `wide` apart: those of these channels, side by side
    const int64_t cells = g.window[0] * g.window[1];
    float* w = Workspace::Floats(Workspace::kWeights, cells * own);
    for (int64_t cell = 0; cell < cells; ++cell) {
      std::memcpy(w + cell * own, b.filter + cell * wide + channel, own * sizeof(float));
    }
    for (int64_t image = 0; image < g.images; ++image) {
      Filter(call, d, 0, g.rows, widened + image * g.height * g.width * own, w,
             b.filter_bias + channel, filtered + image * g.rows * g.columns * own, own);
    }
    MultiplyAndAdd(call.type, results, own, slim, {filtered, own, 1},
                   {Offset(b.project, channel * slim, call.type), slim, 1},
                   {sums.Part(split), slim, 1});
  });
  call.kernels.finish(call.type, results, slim, sums.Total(call.pool), b.residual,
                      {nullptr, b.project_bias}, b.y);
}

// A strip of an image goes through all three: what is between them stays in the cache. The rows
// that two strips of the filter's input share are widened twice. Without an expansion x is wide.
void RunBlock(const Call& call, int64_t narrow, const BlockBuffers& b, int64_t slim) {
  const Geometry& g = call.g;  // of the filter
  const Type type = call.type;
  const int64_t wide = g.channels, k = g.window[0], s = g.strides[0];
  const int64_t map = g.images * g.height * g.width * wide * sizeof(float) / call.threads();
  if (b.expand && g.images < call.threads() && type == Type::kFloat32 && map <= 2 * kCache) {
    return RunBlockByChannels(call, narrow, b, slim);
  }
  const int64_t fit = std::max<int64_t>(kCache / (Size(type) * g.width * wide * s), 4);
  const int64_t pieces_of_image = std::max(Ceil(g.rows, fit), Ceil(call.threads(), g.images));
  const int64_t strip = std::max<int64_t>(Ceil(g.rows, pieces_of_image), 1);
  const int64_t count = Ceil(g.rows, strip), seen = (strip - 1) * s + k;
  Strips strips(call, g.rows);
  ForParts(call.pool, g.images * count, call.parts(g.images * count), [&](int64_t, int64_t first,
                                                                          int64_t last) {
    const int64_t line = g.width * wide, filtered_line = g.columns * wide;
    void* widened = nullptr;
    if (b.expand) widened = Workspace::Get(Workspace::kWide, seen * line * Size(type) + 64);
    void* filtered = Workspace::Get(Workspace::kFiltered, strip * filtered_line * Size(type) + 64);
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t image = piece / count, row = piece % count * strip;
      const int64_t end = std::min(row + strip, g.rows), pixels = (end - row) * g.columns;
      const int64_t from = std::max<int64_t>(row * s - g.before[0], 0);
      const int64_t to = std::min((end - 1) * s - g.before[0] + k, g.height);
      const int64_t in = (image * g.height + from) * g.width * narrow;
      const void* seen_from = Offset(b.x, in - from * line, type);
      if (b.expand) {
        Multiply(type, (to - from) * g.width, narrow, wide, {Offset(b.x, in, type), narrow, 1},
                 {b.expand, wide, 1}, {widened, wide, 1},
                 {b.expand_bias, nullptr, call.before.kind, call.before.slope});
        seen_from = Offset(widened, -from * line, type);
      }
      Filter(call, strips.d, row, end, seen_from, b.filter, b.filter_bias,
             Offset(filtered, -row * filtered_line, type), wide);
      const int64_t out = (image * g.rows + row) * g.columns * slim;
      Multiply(type, pixels, wide, slim, {filtered, wide, 1}, {b.project, slim, 1},
               {Offset(b.y, out, type), slim, 1},
               {b.project_bias, Offset(b.residual, out, type), Activation::kNone, 0});
    }
  });
}

// --- backward

struct BackwardBuffers {
  const void *x, *w, *y, *gy;
  const float* gsums;
  void* gx;
  float *ginput, *gw, *gbias;  // ginput [2, inputs]: by scale and by shift
};

// A piece of the gradient by z * w: gy itself, where nothing is added, or else in the workspace.
const void* OutputGradient(const Call& call, const BackwardBuffers& b, int64_t pixel,
                           int64_t pixels, float* bias) {
  const int64_t channels = call.outputs(), at = pixel * channels;
  const void* piece = Offset(b.gy, at, call.type);
  if (!b.gsums && !bias) return piece;
  void* dy = nullptr;
  if (b.gsums) dy = Workspace::Get(Workspace::kOutput, pixels * channels * Size(call.type) + 64);
  call.kernels.output_gradient(call.type, pixels, channels, piece, Offset(b.y, at, call.type),
                               b.gsums, dy, bias);
  return dy ? dy : piece;
}

// Where the gradient by a piece of z goes: gx itself, where nothing is applied to x.
void* InputTarget(const Call& call, const BackwardBuffers& b, int64_t pixel, int64_t pixels) {
  const int64_t channels = call.inputs();
  if (!call.activates()) return Offset(b.gx, pixel * channels, call.type);
  return Workspace::Get(Workspace::kGradient, pixels * channels * Size(call.type) + 64);
}

void InputGradient(const Call& call, const BackwardBuffers& b, const void* gz, int64_t pixel,
                   int64_t pixels, float* sums) {
  if (!call.activates()) return;
  const int64_t channels = call.inputs(), at = pixel * channels;
  call.kernels.input_gradient(call.type, pixels, channels, gz, Offset(b.x, at, call.type),
                              call.before, Offset(b.gx, at, call.type), sums);
}

void BackwardPointwise(const Call& call, const BackwardBuffers& b) {
  const int64_t c = call.g.channels, k = call.g.outputs, rows = call.g.images * call.in_pixels();
  const int64_t run = call.matrix_rows(), pieces = Ceil(rows, run);
  const int64_t parts = std::min(pieces, call.g.weights() > 1 << 18 ? call.threads() : call.parts(pieces));
  Sums all(Workspace::kSums, parts, 2 * c + k), gw(Workspace::kParts, b.gw ? parts : 0, c * k);
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    float *sums = all.Part(part), *bias = b.gbias ? sums + 2 * c : nullptr;
    for (int64_t row = first * run; row < std::min(last * run, rows); row += run) {
      const int64_t count = std::min(run, rows - row);
      const void* dy = OutputGradient(call, b, row, count, bias);
      if (b.gw) {
        const void* z = Activated(call, b.x, row, count);
        MultiplyAndAdd(call.type, c, count, k, {z, 1, c}, {dy, k, 1}, {gw.Part(part), k, 1});
      }
      if (b.gx) {
        void* gz = InputTarget(call, b, row, count);
        Multiply(call.type, count, k, c, {dy, k, 1}, {b.w, 1, k}, {gz, c, 1});
        InputGradient(call, b, gz, row, count, sums);
      }
    }
  });
  const float* total = all.Total(call.pool);
  if (b.ginput) std::memcpy(b.ginput, total, 2 * c * sizeof(float));
  if (b.gbias) std::memcpy(b.gbias, total + 2 * c, k * sizeof(float));
  if (b.gw) std::memcpy(b.gw, gw.Total(call.pool), c * k * sizeof(float));
}

void BackwardDepthwise(const Call& call, const BackwardBuffers& b) {
  const Strips strips(call, call.g.height);
  const Depthwise& d = strips.d;
  const int64_t pieces = call.g.images * strips.count, parts = call.parts(pieces);
  const int64_t c = d.channels, weights = call.g.weights();
  Sums all(Workspace::kSums, parts, 2 * c + weights);
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    float* scratch =
        Workspace::Floats(Workspace::kInput, call.kernels.depthwise_scratch(d, strips.strip));
    strips.Each(first, last, [&](const Depthwise& own, int64_t image, int64_t row, int64_t end,
                                 int64_t channel) {
      const int64_t in = image * d.height * d.width * c + channel;
      const int64_t out = image * d.rows * d.columns * c + channel;
      call.kernels.depthwise_gradient(
          call.type, own, row, end, Offset(b.x, in, call.type), From(call.before, channel),
          static_cast<const float*>(b.w) + channel, Offset(b.y, out, call.type),
          Offset(b.gy, out, call.type), b.gsums ? b.gsums + channel : nullptr,
          Offset(b.gx, in, call.type), all.Part(part) + channel, all.Part(part) + 2 * c + channel,
          scratch);
    });
  });
  const float* total = all.Total(call.pool);
  if (b.ginput) std::memcpy(b.ginput, total, 2 * c * sizeof(float));
  if (b.gw) std::memcpy(b.gw, total + 2 * c, weights * sizeof(float));
  if (!b.gbias) return;  // rare, and so in a pass of its own
  std::memset(b.gbias, 0, c * sizeof(float));
  call.kernels.output_gradient(call.type, call.g.images * call.out_pixels(), c, b.gy, b.y, b.gsums,
                               nullptr, b.gbias);
}

void BackwardOther(const Call& call, const BackwardBuffers& b) {
  const int64_t images = call.images(), pieces = call.g.images / images;
  const int64_t in = images * call.in_pixels(), out = images * call.out_pixels();
  const int64_t inputs = call.inputs(), outputs = call.outputs();
  Geometry g = call.g;
  g.images = images;
  std::shared_ptr<const Convolution> by_x, by_w;
  if (b.gw) by_w = Convolution::Find(Product::kWeightGradient, call.type, g);
  void* w = const_cast<void*>(b.w);
  if (b.gx) {
    by_x = Convolution::Find(call.transposed ? Product::kConvolve : Product::kInputGradient,
                             call.type, g);
    if (!by_x->plain()) {
      w = Workspace::Get(Workspace::kWeights, by_x->weights_size());
      by_x->Reorder(b.w, w);
    }
  }
  const int64_t parts = std::min(pieces, call.g.weights() > 1 << 18 ? call.threads() : call.parts(pieces));
  const int64_t weights = b.gw ? by_w->weights_size() / sizeof(float) : 0;
  Sums all(Workspace::kSums, parts, 2 * inputs + outputs), gw(Workspace::kParts, parts, weights);
  ForParts(call.pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
    float *sums = all.Part(part), *bias = b.gbias ? sums + 2 * inputs : nullptr;
    for (int64_t piece = first; piece < last; ++piece) {
      void* dy = const_cast<void*>(OutputGradient(call, b, piece * out, out, bias));
      if (b.gw) {
        void* z = const_cast<void*>(Activated(call, b.x, piece * in, in));
        float* to = piece == first ? gw.Part(part) : Workspace::Floats(Workspace::kPart, weights);
        by_w->Run(call.transposed ? dy : z, to, call.transposed ? z : dy);
        for (int64_t i = 0; piece > first && i < weights; ++i) gw.Part(part)[i] += to[i];
      }
      if (b.gx) {
        void* gz = InputTarget(call, b, piece * in, in);
        by_x->Run(call.transposed ? dy : gz, w, call.transposed ? gz : dy);
        InputGradient(call, b, gz, piece * in, in, sums);
      }
    }
  });
  const float* total = all.Total(call.pool);
  if (b.ginput) std::memcpy(b.ginput, total, 2 * inputs * sizeof(float));
  if (b.gbias) std::memcpy(b.gbias, total + 2 * inputs, outputs * sizeof(float));
  if (!b.gw) return;
  const float* sum = gw.Total(call.pool);
  if (by_w->plain()) {
    std::memcpy(b.gw, sum, weights * sizeof(float));
  } else {
    by_w->Reorder(sum, b.gw);
  }
}

// --- handlers

ffi::Error Guard(const std::function<void()>& run) {
  try {
    run();
  } catch (const dnnl::error& error) {
    return ffi::Error::Internal(std::string("oneDNN: ") + error.what());
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "oneDNN: out of memory");
  } catch (const std::exception& error) {
    return ffi::Error::InvalidArgument(error.what());
  }
  return ffi::Error::Success();
}

Type TypeOf(Buffer buffer) {
  switch (buffer.element_type()) {
    case ffi::DataType::F32: return Type::kFloat32;
    case ffi::DataType::BF16: return Type::kBfloat16;
    default: throw std::invalid_argument("oneDNN convolutions take float32 and bfloat16");
  }
}

// A buffer of numbers for each channel, or of a whole map, has as many as it must, or none.
void Check(const char* name, Buffer buffer, int64_t count, ffi::DataType type) {
  const int64_t own = buffer.element_count();
  if (own == 0 || (own == count && buffer.element_type() == type)) return;
  throw std::invalid_argument(std::string(name) + " is of another size or type than its map");
}

constexpr ffi::DataType kNumbers = ffi::DataType::F32;

Activation Before(Buffer affine, int64_t channels, int64_t kind, float slope) {
  const float* numbers = Data<const float>(affine);
  return {numbers, numbers ? numbers + channels : nullptr, kind, slope};
}

// All numbers of a geometry but the images, in their order.
Geometry FromNumbers(const int64_t* n) {
  return {1,    n[0],         n[1],  n[2],           n[3],            n[4],            n[5],
          {n[6], n[7]}, n[8], {n[9], n[10]}, {n[11], n[12]}, {n[13], n[14]}, {n[15], n[16]}};
}

// `x` and `y` are input and output of the operation, whichever way it goes.
Geometry ReadGeometry(Buffer x, Buffer y, Numbers numbers, bool transposed) {
  const auto big = (transposed ? y : x).dimensions(), small = (transposed ? x : y).dimensions();
  if (big.size() != 4 || small.size() != 4 || numbers.size() != 11) {
    throw std::invalid_argument("a convolution has four axes, and eleven numbers of geometry");
  }
  return {big[0], big[1], big[2], big[3], small[1], small[2], small[3], {numbers[9], numbers[10]},
          numbers[0], {numbers[1], numbers[2]}, {numbers[3], numbers[4]}, {numbers[5], numbers[6]},
          {numbers[7], numbers[8]}};
}

// Weights, from XLA's layout into that of `PackingPlan`.
ffi::Error Pack(Buffer w, ffi::Result<Buffer> packed, Numbers numbers) {
  return Guard([&] {
    const auto plan = PackingPlan(TypeOf(w), FromNumbers(numbers.begin()));
    if (plan->plain()) {
      std::memcpy(packed->untyped_data(), w.untyped_data(), plan->weights_size());
    } else {
      plan->Reorder(w.untyped_data(), packed->untyped_data());
    }
  });
}

ffi::Error Forward(ffi::ThreadPool pool, Buffer x, Buffer affine, Buffer w, Buffer bias,
                   Buffer residual, ffi::Result<Buffer> y, ffi::Result<Buffer> sums,
                   Numbers numbers, bool transposed, int64_t before, int64_t after, float slope) {
  return Guard([&] {
    const Geometry g = ReadGeometry(x, *y, numbers, transposed);
    Call call{pool, TypeOf(x), g, transposed, {}, {nullptr, nullptr, after, slope}};
    call.before = Before(affine, call.inputs(), before, slope);
    const bool packed = w.element_type() == ffi::DataType::U8;
    const bool wide = g.depthwise() && !transposed;
    Check("affine", affine, 2 * call.inputs(), kNumbers);
    Check("bias", bias, call.outputs(), kNumbers);
    Check("residual", residual, y->element_count(), x.element_type());
    Check("y", *y, g.images * call.out_pixels() * call.outputs(), x.element_type());
    if (!packed) Check("w", w, g.weights(), wide ? kNumbers : x.element_type());
    const ForwardBuffers buffers{x.untyped_data(),     w.untyped_data(),  Data<float>(bias),
                                 Data<void>(residual), y->untyped_data(), Data<float>(*sums),
                                 packed};
    if (!transposed && g.pointwise()) return ForwardPointwise(call, buffers);
    if (!transposed && g.depthwise()) return ForwardDepthwise(call, buffers);
    ForwardOther(call, buffers);
  });
}

ffi::Error Backward(ffi::ThreadPool pool, Buffer x, Buffer affine, Buffer w, Buffer y, Buffer gy,
                    Buffer gsums, ffi::Result<Buffer> gx, ffi::Result<Buffer> gaffine,
                    ffi::Result<Buffer> gw, ffi::Result<Buffer> gbias, Numbers numbers,
                    bool transposed, int64_t before, float slope) {
  return Guard([&] {
    const Geometry g = ReadGeometry(x, gy, numbers, transposed);
    Call call{pool, TypeOf(gy), g, transposed, {}, {}};
    call.before = Before(affine, call.inputs(), before, slope);
    const bool wide = g.depthwise() && !transposed;
    Check("affine", affine, 2 * call.inputs(), kNumbers);
    Check("w", w, g.weights(), wide ? kNumbers : x.element_type());
    Check("y", y, gy.element_count(), x.element_type());
    Check("gsums", gsums, 2 * call.outputs(), kNumbers);
    Check("gy", gy, g.images * call.out_pixels() * call.outputs(), x.element_type());
    const BackwardBuffers buffers{x.untyped_data(),  w.untyped_data(),   Data<void>(y),
                                  gy.untyped_data(), Data<float>(gsums), Data<void>(*gx),
                                  Data<float>(*gaffine), Data<float>(*gw), Data<float>(*gbias)};
    if (!transposed && g.pointwise()) return BackwardPointwise(call, buffers);
    if (!transposed && g.depthwise()) return BackwardDepthwise(call, buffers);
    BackwardOther(call, buffers);
  });
}

// The activation before is that of the expansion, the one after that of the filter.
ffi::Error Block(ffi::ThreadPool pool, Buffer x, Buffer expand, Buffer expand_bias, Buffer filter,
                 Buffer filter_bias, Buffer project, Buffer project_bias, Buffer residual,
                 ffi::Result<Buffer> y, Numbers numbers, int64_t before, int64_t after,
                 float slope) {
  return Guard([&] {
    const auto in = x.dimensions(), out = y->dimensions();
    Geometry g = ReadGeometry(x, *y, numbers, false);
    g.channels = g.outputs = filter.dimensions().back();
    const Call call{pool, TypeOf(x), g, false, {nullptr, nullptr, before, slope},
                    {nullptr, nullptr, after, slope}};
    const auto type = x.element_type();
    if (!g.depthwise()) throw std::invalid_argument("the filter of a block is depthwise");
    Check("expand", expand, in[3] * g.channels, type);
    Check("expand_bias", expand_bias, g.channels, kNumbers);
    Check("filter", filter, g.weights(), kNumbers);
    Check("filter_bias", filter_bias, g.channels, kNumbers);
    Check("project", project, g.channels * out[3], type);
    Check("project_bias", project_bias, out[3], kNumbers);
    Check("residual", residual, y->element_count(), type);
    if (!expand.element_count() && in[3] != g.channels) {
      throw std::invalid_argument("a block without an expansion is as wide as its input");
    }
    RunBlock(call, in[3],
             {x.untyped_data(), Data<void>(expand), Data<float>(expand_bias),
              Data<float>(filter), Data<float>(filter_bias), project.untyped_data(),
              Data<float>(project_bias), Data<void>(residual), y->untyped_data()},
             out[3]);
  });
}

// z = activation(scale * x + shift + residual)
ffi::Error Finish(ffi::ThreadPool pool, Buffer x, Buffer affine, Buffer residual,
                  ffi::Result<Buffer> z, int64_t kind, float slope) {
  return Guard([&] {
    const int64_t channels = x.dimensions().back(), rows = x.element_count() / channels;
    const Type type = TypeOf(x);
    const Activation activation = Before(affine, channels, kind, slope);
    Check("affine", affine, 2 * channels, kNumbers);
    Check("residual", residual, x.element_count(), x.element_type());
    const int64_t run = 16 * Ceil(kCache, 64 * channels), pieces = Ceil(rows, run);
    ParallelFor(pool, pieces, [&](int64_t piece) {
      const int64_t at = piece * run * channels, count = std::min(run, rows - piece * run);
      BestKernels().finish(type, count, channels, Offset(x.untyped_data(), at, type),
                           Offset(Data<void>(residual), at, type), activation,
                           Offset(z->untyped_data(), at, type));
    });
  });
}

ffi::Error FinishGradient(ffi::ThreadPool pool, Buffer x, Buffer affine, Buffer z, Buffer gz,
                          ffi::Result<Buffer> gx, ffi::Result<Buffer> gaffine,
                          ffi::Result<Buffer> gresidual, int64_t kind, float slope) {
  return Guard([&] {
    const int64_t channels = x.dimensions().back(), rows = x.element_count() / channels;
    const Type type = TypeOf(x);
    const Activation activation = Before(affine, channels, kind, slope);
    Check("affine", affine, 2 * channels, kNumbers);
    Check("z", z, x.element_count(), x.element_type());
    Check("gz", gz, x.element_count(), x.element_type());
    const int64_t run = 16 * Ceil(kCache, 64 * channels), pieces = Ceil(rows, run);
    const int64_t parts = std::min(pieces, 4 * std::max<int64_t>(pool.num_threads(), 1));
    Sums sums(Workspace::kSums, parts, 2 * channels);
    ForParts(pool, pieces, parts, [&](int64_t part, int64_t first, int64_t last) {
      for (int64_t row = first * run; row < std::min(last * run, rows); row += run) {
        const int64_t at = row * channels, count = std::min(run, rows - row);
        BestKernels().finish_gradient(type, count, channels, Offset(gz.untyped_data(), at, type),
                                      Offset(z.untyped_data(), at, type),
                                      Offset(x.untyped_data(), at, type), activation,
                                      Offset(gx->untyped_data(), at, type),
                                      Offset(Data<void>(*gresidual), at, type), sums.Part(part));
      }
    });
    std::memcpy(gaffine->untyped_data(), sums.Total(pool), 2 * channels * sizeof(float));
  });
}

}  // namespace
}  // namespace market_jax

// Bytes of the weights that the handler "Pack" makes; -1 where it cannot.
extern "C" int64_t MarketJaxPackedSize(int bfloat16, const int64_t* numbers) {
  using market_jax::Type;
  try {
    const Type type = bfloat16 ? Type::kBfloat16 : Type::kFloat32;
    return market_jax::PackingPlan(type, market_jax::FromNumbers(numbers))->weights_size();
  } catch (const std::exception&) {
    return -1;
  }
}

// Whether this CPU can run the library.
extern "C" int MarketJaxSupported() {
  try {
    market_jax::BestKernels();
    return 1;
  } catch (const std::exception&) {
    return 0;
  }
}

using Binding = xla::ffi::Ffi;
using xla::ffi::AnyBuffer;
using IntegerSpan = xla::ffi::Span<const int64_t>;

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxForward, market_jax::Forward,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<IntegerSpan>("geometry")
                                  .Attr<bool>("transposed")
                                  .Attr<int64_t>("before")
                                  .Attr<int64_t>("after")
                                  .Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    MarketJaxPack, market_jax::Pack,
    Binding::Bind().Arg<AnyBuffer>().Ret<AnyBuffer>().Attr<IntegerSpan>("geometry"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxBlock, market_jax::Block,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<IntegerSpan>("geometry")
                                  .Attr<int64_t>("before")
                                  .Attr<int64_t>("after")
                                  .Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxBackward, market_jax::Backward,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<IntegerSpan>("geometry")
                                  .Attr<bool>("transposed")
                                  .Attr<int64_t>("before")
                                  .Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxFinish, market_jax::Finish,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<int64_t>("kind")
                                  .Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(MarketJaxFinishGradient, market_jax::FinishGradient,
                              Binding::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Arg<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Ret<AnyBuffer>()
                                  .Attr<int64_t>("kind")
                                  .Attr<float>("slope"));
